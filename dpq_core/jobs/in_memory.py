"""``quantize_``: product quantization of any loaded torch module, in place, in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dpq_core.data.sequential.quantizer import input_statistics
from dpq_core.data.statistics import LayerStatistics
from dpq_core.kernels.cpu.openmp import short_spins
from dpq_core.methods.output_aware import InputStatistics
from dpq_core.methods.quantize import quantize
from dpq_core.planning.plan import plan_tensor
from dpq_core.run import Progress, silent
from dpq_core.runtime import swap
from dpq_core.runtime.weight import PQWeight
from dpq_core.spec import Override, QuantSpec, apply_overrides
from dpq_core.tensor.checkpoint import TensorInfo

MIN_WEIGHTS = 4096
"""Smallest weight that is quantized by default; codebooks of smaller ones take what they save."""

Dense = nn.Linear | nn.Conv2d | nn.Embedding

Filter = Callable[[str, nn.Module], bool]
"""Whether a module is quantized, by its path and itself."""


@dataclass(frozen=True, kw_only=True)
class QuantizedModule:
    """The result for one quantized weight.

    Attributes:
        spec: the spec by which it is quantized.
        nbytes: size of all its stored parts in bytes.
        bits_per_weight: bits of all stored parts per weight.
        relative_error: ||W - W_hat||^2 / ||W||^2.
    """

    spec: QuantSpec
    nbytes: int
    bits_per_weight: float
    relative_error: float


def large(path: str, module: nn.Module) -> bool:
    """The default filter: modules with at least ``MIN_WEIGHTS`` weights."""
    return module.weight.numel() >= MIN_WEIGHTS  # type: ignore[operator]


@short_spins()
def quantize_(
    model: nn.Module,
    spec: QuantSpec,
    *,
    filter: Filter = large,
    overrides: Iterable[Override] = (),
    statistics: Mapping[str, LayerStatistics | InputStatistics] | None = None,
    progress: Progress = silent,
) -> dict[str, QuantizedModule]:
    """Replace the Linear, Conv2d and Embedding modules of a model by quantized ones.

    Weights that several modules share stay shared. The model is then ready for inference; its
    codebooks and scales are parameters, frozen.

    Args:
        model: the model, changed in place.
        spec: how weights are quantized, e.g. ``QuantSpec.preset(2)``.
        filter: decides which modules; by default those of at least 4,096 weights.
        overrides: other settings for some weights, by a pattern of their name
            (``"layers.0.fc1.weight"``); later ones win.
        statistics: of the modules' inputs, by path, for assignments that need them: what
            ``dpq_core.data.statistics.collect`` returns, or second moments from elsewhere.
        progress: called as work goes on.

    Returns:
        The result for each quantized weight, by path.

    Raises:
        SpecError: the spec does not fit a weight, or a weight holds NaN or infinite values.
    """
    chosen = _chosen(model, filter)
    rules, inputs = tuple(overrides), statistics or {}
    done: dict[Tensor, PQWeight] = {}
    report: dict[str, QuantizedModule] = {}
    total = sum(module.weight.numel() for module in chosen.values())
    count = 0
    for path, module in chosen.items():
        progress(path, count, total)
        dense, layout = module.weight, swap.layout_of(module)
        count += dense.numel()
        if dense in done:
            swap.replace_module(model, path, done[dense])
            continue
        own_spec = apply_overrides(f"{path}.weight", spec, rules)
        info = TensorInfo(tuple(dense.shape), dense.dtype)
        plan = plan_tensor(f"{path}.weight", info, layout, own_spec)
        if plan.spec is None or plan.partition is None:
            continue
        moments = inputs.get(path)
        if isinstance(moments, LayerStatistics):
            moments = input_statistics(moments, dense.device)
        result = quantize(dense.detach(), plan.partition, plan.spec, plan.name, statistics=moments)
        done[dense] = PQWeight.from_pq(result.pq)
        swap.replace_module(model, path, done[dense])
        report[path] = QuantizedModule(
            spec=plan.spec,
            nbytes=result.pq.nbytes,
            bits_per_weight=result.pq.bits_per_weight,
            relative_error=result.relative_error,
        )
    progress("done", total, total)
    for weight in done.values():
        weight.requires_grad_(False)
    return report


def _chosen(model: nn.Module, filter: Filter) -> dict[str, Dense]:
    """The modules to quantize by path, embeddings before modules that share their weight."""
    modules: dict[str, Dense] = {
        path: module
        for path, module in model.named_modules(remove_duplicate=False)
        if path and isinstance(module, Dense) and swap.layout_of(module) and filter(path, module)
    }
    embeddings_first = sorted(modules, key=lambda path: not isinstance(modules[path], nn.Embedding))
    return {path: modules[path] for path in embeddings_first}
