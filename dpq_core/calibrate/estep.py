"""The E-step of quantized weights: new codes for fixed codebooks (docs/algorithms.md#e-step).

Codes move towards the teacher's weights in the metric of the layer's inputs as the student sees
them, by coordinate descent with a limit on the number of codes that may change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dpq_core.calibrate.dead_codewords.codewords import (
    Codewords,
    codes_of,
    slot_usage,
    vectors_name,
)
from dpq_core.calibrate.dead_codewords.replacement import slot_statistics
from dpq_core.calibrate.distributed import Workers
from dpq_core.calibrate.gradient import Shares, newton_steps
from dpq_core.calibrate.layers import QuantizedLayer
from dpq_core.calibrate.moments import Moments
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.data.task import Batch, EStepStats
from dpq_core.methods.assignment.assign import assign
from dpq_core.methods.assignment.least_squares import update_codebooks
from dpq_core.methods.assignment.objective import Objective
from dpq_core.methods.quantize import tensor_seed
from dpq_core.runtime.weight import PQWeight
from dpq_core.tensor.basis.frame import Frame
from dpq_core.tensor.basis.selection import divisor
from dpq_core.tensor.packing import pack, unpack

SWEEPS = 2
"""Sweeps of coordinate descent while the number of changed codes is not limited."""

ReadOriginal = Callable[[QuantizedLayer], Tensor]
"""The original weight of a layer."""


class WeightsEStep:
    """The E-steps of all quantized weights of a phase.

    Attributes:
        layers: layers whose codes may change; empty without original weights.
        revived: name of a parameter of the student -> indices of its vectors that the last
            ``step`` replaced.
    """

    def __init__(
        self,
        student: nn.Module,
        layers: Sequence[QuantizedLayer],
        target: ReadOriginal | None,
        settings: CalibrateSettings,
        *,
        interval: int,
    ) -> None:
        """Set up the statistics; nothing is read or computed yet.

        Args:
            student: holds the layers.
            layers: layers whose codes may change.
            target: reads original weights; None where there are none, and codes stay fixed.
            settings: kind of the E-step, decay of the statistics, age of dead codewords, seed.
            interval: M-steps between two E-steps.
        """
        self._student = student
        self.layers = list(layers) if target is not None else []
        self._target, self._settings = target, settings
        self._moments = Moments(student, [layer.path for layer in self.layers], settings.rho)
        self._words = {
            layer.path: Codewords(
                layer.weight,
                after=settings.tau_dead,
                interval=interval,
                seed=tensor_seed(settings.seed, layer.name),
            )
            for layer in self.layers
            if settings.tau_dead
        }
        self._steps: dict[str, Tensor] = {}
        self._reach = 0.0
        self.revived: dict[str, Tensor] = {}

    def look(self, loss: Callable[[Batch], Tensor], batches: Shares, workers: Workers) -> None:
        """Measure the Newton steps along the gradient of a loss, which ``aim`` may use."""
        args = (self._student, self.layers, self._moments, loss, batches, workers)
        self._steps = newton_steps(*args) if self.layers else {}

    def aim(self, reach: float) -> None:
        """Choose the target weights of the next ``step``.

        Args:
            reach: distance along the gradient, relative to the Newton step for all weights at once;
                0 aims at the original weights.
        """
        self._reach = reach

    def collect(self, forward: Callable[[], float], workers: Workers) -> float:
        """Run ``forward`` and add the inputs that the layers see to the statistics.

        Called once per E-step: codewords without codes age by it. Returns the result of
        ``forward``.
        """
        for words in self._words.values():
            words.age()
        return self._moments.collect(forward, workers)

    def step(self, limit: float, progress: float) -> EStepStats:
        """Choose every layer's codes anew; see ``EStep``."""
        self.revived = {}
        return total([self._assign(layer, limit, progress) for layer in self.layers])

    def undo(self) -> None:
        """Forget the last ``step``, which raised the loss; the caller has restored the student."""
        for words in self._words.values():
            words.undo()

    def solve(self) -> EStepStats:
        """Set codebooks (or pools) to the least-squares solution of the layers' output errors."""
        for layer in self.layers:
            objective, p = self._objective(layer), layer.weight.partition
            if objective is None:
                continue
            parts = layer.weight.parts()
            values = parts["pool" if p.pool else "codebooks"]
            index = unpack(parts["index_map"], p.index_bits, p.K) if p.pool else None
            solution = update_codebooks(
                objective, codes_of(layer.weight), values.detach(), index_map=index
            )
            with torch.no_grad():
                values.copy_(solution.codebooks)
        return total([stats_of(layer.weight, codes_of(layer.weight)) for layer in self.layers])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a resumed run needs."""
        moments = {f"moments/{name}": value for name, value in self._moments.tensors().items()}
        words = {
            f"words/{path}/{name}": value
            for path, codewords in self._words.items()
            for name, value in codewords.tensors().items()
        }
        return {**moments, **words}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        self._moments.load(_below("moments", tensors))
        words = _below("words", tensors)
        for path, codewords in self._words.items():
            if state := _below(path, words):
                codewords.load(state)

    def _assign(self, layer: QuantizedLayer, limit: float, progress: float) -> EStepStats:
        weight = layer.weight
        objective, before = self._objective(layer), codes_of(weight)
        if objective is None:
            return stats_of(weight, before)
        revived = 0
        if layer.path in self._words:
            words = self._words[layer.path].replace_dead(objective, progress)
            revived = len(words.replaced)
            if revived:
                self.revived[f"{layer.path}.weight.{vectors_name(weight)}"] = words.replaced
        codes = assign(
            objective,
            weight.books().detach(),
            method="icm",
            sweeps=SWEEPS if limit >= 1 else 1,
            codes=before,
            limit=limit,
        ).codes
        set_codes(weight, codes)
        changed = int((codes != before).sum())
        return replace(stats_of(weight, codes), changed=changed, revived=revived)

    def _target_weight(self, layer: QuantizedLayer) -> Tensor:
        """The dense weight that the codes should approximate."""
        if self._reach == 0 and self._target is not None:
            return self._target(layer)
        step = self._steps[layer.path]
        return layer.weight.decode(step.dtype).detach() + self._reach * step

    def _objective(self, layer: QuantizedLayer) -> Objective | None:
        """The output error of a layer as a function of its codes; None where no input was seen."""
        weight, seen = layer.weight, self._moments.of(layer.path)
        if seen is None or self._target is None:
            return None
        p, frame = weight.partition, detached(weight.frame())
        core = core_of(frame, p.to_matrix(self._target_weight(layer)))
        row_weight = torch.ones(p.rows, device=core.device)
        if frame.row_scale is not None:
            row_weight = frame.row_scale.float().square()
        if seen.rows is not None:
            row_weight = row_weight * seen.rows.to(core.device)
        hessian = frame.rotate_hessian(seen.hessian(p.cols, core.device))
        if self._settings.estep == "l2":
            hessian = torch.eye(p.cols, device=core.device)
        elif self._settings.estep == "blockdiag" and p.orientation == "input":
            group = torch.arange(p.cols, device=core.device) // p.d
            hessian = hessian * (group[:, None] == group)
        return Objective.of(core, hessian, p, orientation=p.orientation, row_weight=row_weight)


def core_of(frame: Frame, matrix: Tensor) -> Tensor:
    """The float32 core of W ``[R, C]``, which codewords approximate; undoes ``Frame.restore``."""
    core = frame.rotate(matrix.float())
    if frame.row_scale is not None:
        core = core / divisor(frame.row_scale)[:, None]
    return core if frame.column_scale is None else core / divisor(frame.column_scale)


def detached(frame: Frame) -> Frame:
    """A frame whose tensors have no gradients."""
    plain = {name: None if v is None else v.detach() for name, v in vars(frame).items()}
    return Frame(**plain)


def set_codes(weight: PQWeight, codes: Tensor) -> None:
    """Replace the codes ``[S*G, P]`` of a weight, in place."""
    packed = pack(codes, weight.partition.code_bits)
    weight.codes.copy_(packed.to(weight.codes.device))


def stats_of(weight: PQWeight, codes: Tensor) -> EStepStats:
    """The usage of a weight's codewords by some codes."""
    dead, perplexity = slot_statistics(slot_usage(weight, codes))
    return EStepStats(
        changed=0,
        total=codes.numel(),
        dead=dead,
        perplexity=perplexity / weight.partition.K,
    )


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    dot = f"{prefix}/"
    return {n.removeprefix(dot): v for n, v in tensors.items() if n.startswith(dot)}


def total(parts: Sequence[EStepStats]) -> EStepStats:
    """The sum of several E-steps' statistics; shares are averaged over the codes."""
    codes = sum(s.total for s in parts)

    def mean(values: Sequence[float]) -> float:
        weighted = zip(values, parts, strict=True)
        return sum(value * s.total for value, s in weighted) / max(1, codes)

    return EStepStats(
        changed=sum(s.changed for s in parts),
        total=codes,
        dead=mean([s.dead for s in parts]),
        perplexity=mean([s.perplexity for s in parts]),
        revived=sum(s.revived for s in parts),
    )
