"""Second moments of the inputs of layers on some data, collected by hooks.

Layers that receive the same tensor (q, k and v; gate and up) share one matrix.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dpq_core.data.statistics.layer_inputs import LayerInput
from dpq_core.data.statistics.moment import Moment
from dpq_core.errors import SpecError
from dpq_core.tensor.partition import Layout

MAX_POSITIONS = 4096
"""Most positions of a convolution's images that one forward pass adds."""


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """Statistics of a layer's input; ``hessian`` is None where only the diagonal was kept.

    Attributes:
        count: rows seen: tokens, samples, positions of images or look-ups.
        hessian: H = E[x x^T], float32 ``[cols, cols]``.
        diagonal: E[x_i^2], float32 ``[cols]``.
        row_counts: how often each entry of an embedding was looked up, float32 ``[entries]``.
        drift: E[(y - x) x^T], float32 ``[cols, cols]``, y the input in the uncompressed model.
    """

    count: float
    hessian: Tensor | None = None
    diagonal: Tensor | None = None
    row_counts: Tensor | None = None
    drift: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """Options of collecting statistics.

    Attributes:
        diagonal: keep only E[x_i^2].
        share: keep one matrix for layers that get the same tensor.
        max_positions: most positions of a convolution's images that one forward pass adds.
        seed: seed of the draw of these positions.
        device: device of the sums; that of the inputs by default.
        conv_layouts: path of a dense convolution -> order of its columns, ``spatial`` by default.
    """

    diagonal: bool = False
    share: bool = True
    max_positions: int = MAX_POSITIONS
    seed: int = 0
    device: torch.device | str | None = None
    conv_layouts: Mapping[str, str] = field(default_factory=dict)


class Diverged(Exception):  # noqa: N818 - not a mistake of the user: the caller starts over
    """Layers that got the same tensor at first got different ones later."""


class TensorSerials:
    """Serial numbers that tell whether two layers got the same tensor.

    Tensors are told apart by identity, not by value, and are not kept alive; one that was changed
    in place counts as another.
    """

    def __init__(self) -> None:
        """No tensor has a number yet."""
        self._numbers: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._next = 0

    def serial(self, x: Tensor) -> int:
        """The number of ``x``, the same at every call while ``x`` lives unchanged."""
        version = 0 if x.is_inference() else x._version
        entry = self._numbers.get(id(x))
        if entry is not None and entry[0]() is x and entry[1] == version:
            return entry[2]
        alive = {key: entry for key, entry in self._numbers.items() if entry[0]() is not None}
        self._numbers = alive | {id(x): (weakref.ref(x), version, self._next)}
        self._next += 1
        return self._next - 1


@dataclass
class _Shared:
    """The moment of layers that get the same tensors.

    Attributes:
        input: kind of the layers.
        moment: moment of their inputs.
        places: path -> how many of the inputs it has had.
        first: serial number of the first input.
        recent: serial numbers of the inputs that not every layer has had.
        total: inputs so far.
    """

    input: LayerInput
    moment: Moment
    places: dict[str, int] = field(default_factory=dict)
    first: int = -1
    recent: list[int] = field(default_factory=list)
    total: int = 0

    def is_new(self, path: str, serial: int) -> bool:
        """Whether this input of a layer is to be added; another layer may have brought it.

        Raises:
            Diverged: another layer got another tensor in its place.
        """
        place = self.places[path]
        self.places[path] = place + 1
        if place == self.total:
            self.first = serial if self.total == 0 else self.first
            self.total += 1
            self.recent.append(serial)
            new = True
        else:
            new = False
            if self.recent[place - self.total] != serial:
                raise Diverged(path)
        if min(self.places.values()) == self.total:
            self.recent.clear()
        return new

    def takes(self, serial: int, wanted: LayerInput) -> bool:
        """Whether a layer whose first input this is can join."""
        return self.total == 1 and self.first == serial and self.input == wanted


class Collector:
    """Hooks that accumulate moments while a model runs; a context manager.

    Attributes:
        moments: path -> its moment, as soon as the layer ran; layers that share have the same.
    """

    def __init__(
        self, model: nn.Module, paths: Iterable[str], options: CollectOptions | None = None
    ) -> None:
        """Choose the layers; nothing is hooked before ``with``.

        Raises:
            SpecError: a layer is of no kind that has statistics.
        """
        self._options = options or CollectOptions()
        self._inputs: dict[str, LayerInput] = {}
        self._modules = {path: model.get_submodule(path) for path in paths}
        for path, module in self._modules.items():
            kind_of_input = LayerInput.of(module, self._options.conv_layouts.get(path))
            if kind_of_input is None:
                kind = type(module).__name__
                raise SpecError(
                    f"{path!r}: no input statistics for a {kind}, only for Linear, "
                    "Conv2d and Embedding"
                )
            self._inputs[path] = kind_of_input
        self._shared: dict[str, _Shared] = {}
        self._identities = TensorSerials()
        self._handles: list[RemovableHandle] = []

    @property
    def moments(self) -> Mapping[str, Moment]:
        """Path -> moment, of the layers that ran."""
        return {path: shared.moment for path, shared in self._shared.items()}

    def __enter__(self) -> Self:
        """Add hooks to the layers."""
        for path, module in self._modules.items():

            def hook(
                module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path
            ) -> None:
                x = args[0] if args else next(iter(kwargs.values()))
                self.add(path, x)

            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks; the moments stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def decayed(self, rho: float) -> None:
        """Apply ``Moment.decayed`` to every moment, once where it is shared."""
        for shared in self._distinct():
            shared.moment.decayed(rho)

    def statistics(self) -> dict[str, LayerStatistics]:
        """The statistics of the layers that got rows; layers that share inputs get the same object.

        Raises:
            Diverged: layers that share have not had the same inputs.
            SpecError: an input was NaN or infinite.
        """
        done: dict[int, LayerStatistics] = {}
        for path, shared in self._shared.items():
            if set(shared.places.values()) != {shared.total}:
                raise Diverged(path)
            if id(shared) not in done and shared.moment.count:
                done[id(shared)] = self._finish(path, shared)
        return {path: done[id(s)] for path, s in self._shared.items() if id(s) in done}

    def add(self, path: str, x: Tensor) -> None:
        """Add an input of a layer, as its hook does; raises Diverged as ``statistics`` does."""
        serial = self._identities.serial(x)
        if path not in self._shared:
            self._shared[path] = self._find(path, serial)
        shared = self._shared[path]
        if not shared.is_new(path, serial):
            return
        with torch.no_grad():
            if shared.input.layout is Layout.EMBEDDING:
                shared.moment.update_counts(x)
                return
            draw = torch.Generator().manual_seed(self._options.seed + shared.total)
            for rows in shared.input.rows(x, self._options.max_positions, draw):
                shared.moment.update(rows)

    def _find(self, path: str, serial: int) -> _Shared:
        """The moment that a layer shares with others, or a new one."""
        kind = self._inputs[path]
        others = self._distinct() if self._options.share else []
        for shared in others:
            if shared.takes(serial, kind):
                shared.places[path], shared.recent = 0, [serial]
                return shared
        diagonal = self._options.diagonal or kind.layout is Layout.EMBEDDING
        moment = Moment(kind.cols, diagonal=diagonal, device=self._options.device)
        return _Shared(input=kind, moment=moment, places={path: 0})

    def _distinct(self) -> list[_Shared]:
        return list({id(shared): shared for shared in self._shared.values()}.values())

    def _finish(self, path: str, shared: _Shared) -> LayerStatistics:
        moment = shared.moment
        if shared.input.layout is Layout.EMBEDDING:
            return LayerStatistics(count=moment.count, row_counts=moment.totals())
        mean = moment.mean()
        if not bool(torch.isfinite(mean).all()):
            raise SpecError(
                f"{path!r}: its inputs are NaN or infinite on the calibration data; run the model "
                "in bfloat16 or float32, or leave out the damaged samples"
            )
        if moment.diagonal:
            return LayerStatistics(count=moment.count, diagonal=mean)
        return LayerStatistics(count=moment.count, hessian=mean, diagonal=mean.diagonal())


def collect(
    model: nn.Module,
    paths: Iterable[str],
    forward: Callable[[], None],
    options: CollectOptions | None = None,
) -> dict[str, LayerStatistics]:
    """Statistics of some layers over what ``forward`` runs.

    Args:
        model: holds the layers; dense or quantized.
        paths: paths of the layers; those that never get a row are missing in the result.
        forward: runs the model on any number of batches; it is called a second time where layers
            turn out not to share all their inputs.
        options: what to keep.

    Raises:
        SpecError: a layer is of no kind that has statistics, or an input is NaN or infinite.
    """
    options, paths = options or CollectOptions(), tuple(paths)
    try:
        return _collected(model, paths, forward, options)
    except Diverged:
        return _collected(model, paths, forward, replace(options, share=False))


def _collected(
    model: nn.Module, paths: tuple[str, ...], forward: Callable[[], None], options: CollectOptions
) -> dict[str, LayerStatistics]:
    with Collector(model, paths, options) as collector:
        forward()
        return collector.statistics()
