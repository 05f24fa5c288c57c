"""Moving averages of the second moments of the student's layer inputs, over E-steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from dpq_core.calibrate.distributed import Workers
from dpq_core.data.statistics import CollectOptions, Collector, Diverged, LayerStatistics

T = TypeVar("T")


@dataclass(frozen=True)
class InputSums:
    """Decaying sums over the inputs of a layer.

    Attributes:
        count: number of rows, each times its decay; float64 ``[]``.
        moment: sum of x x^T ``[cols, cols]``; None for an embedding.
        rows: look-ups of each entry of an embedding; else None.
    """

    count: Tensor
    moment: Tensor | None = None
    rows: Tensor | None = None

    def hessian(self, cols: int, device: torch.device) -> Tensor:
        """H = E[x x^T] ``[cols, cols]``; the identity for an embedding's independent rows."""
        if self.moment is None:
            return torch.eye(cols, device=device)
        return (self.moment / self.count.clamp(min=1e-30)).float().to(device)


class Moments:
    """Decaying second moments of the inputs of some layers.

    Batches of n E-steps ago weigh rho^n, and so do their counts: the mean needs no correction at
    its start. Layers that get the same tensor share one moment.
    """

    def __init__(self, student: nn.Module, paths: Sequence[str], rho: float) -> None:
        """Start with no inputs.

        Args:
            student: holds the layers.
            paths: paths of the layers.
            rho: decay per E-step.
        """
        self._student, self._paths, self._rho = student, tuple(paths), rho
        self._seen: dict[str, InputSums] = {}
        self._new: dict[str, InputSums] = {}
        self._home: dict[str, str] = {}  # path -> the path whose moment it shares

    def collect(self, forward: Callable[[], T], workers: Workers) -> T:
        """Run ``forward`` and add the inputs of the layers in all processes; returns its result."""
        try:
            result = self._collect(forward, share=True)
        except Diverged:
            result = self._collect(forward, share=False)
        for key in dict.fromkeys(self._home.values()):
            new = self._new[key]
            for total in (new.count, new.moment, new.rows):
                if total is not None:
                    workers.sum(total)
            self._seen[key] = _added(self._seen.get(key), self._rho, new)
        self._new.clear()
        return result

    def _collect(self, forward: Callable[[], T], *, share: bool) -> T:
        self._home, self._new = {}, {}
        with Collector(self._student, self._paths, CollectOptions(share=share)) as collector:
            result = forward()
        first: dict[int, str] = {}
        for path, statistics in collector.statistics().items():
            key = first.setdefault(id(statistics), path)
            self._home[path] = key
            if key == path:
                self._new[key] = _sums(statistics)
        return result

    def of(self, path: str) -> InputSums | None:
        """The sums of a layer; None where it did not run in the last ``collect``."""
        return self._seen.get(self._home.get(path, ""))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a resumed run needs: ``path/field`` -> tensor."""
        return {
            f"{path}/{field}": value
            for path, seen in self._seen.items()
            for field, value in vars(seen).items()
            if value is not None
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        fields: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            path, _, field = key.rpartition("/")
            fields.setdefault(path, {})[field] = value
        self._seen = {path: InputSums(**tensors_of) for path, tensors_of in fields.items()}


def _sums(statistics: LayerStatistics) -> InputSums:
    """The statistics of a few batches as sums, which can be added up."""
    count = torch.tensor(statistics.count, dtype=torch.float64)
    if statistics.row_counts is not None:
        return InputSums(count=count, rows=statistics.row_counts)
    assert statistics.hessian is not None  # only embeddings have no matrix
    return InputSums(
        count=count.to(statistics.hessian.device), moment=statistics.hessian * statistics.count
    )


def _added(old: InputSums | None, rho: float, new: InputSums) -> InputSums:
    """``rho * old + new``."""
    if old is None:
        return new

    def add(before: Tensor | None, now: Tensor | None) -> Tensor | None:
        return None if now is None else now if before is None else rho * before + now

    return InputSums(
        count=rho * old.count + new.count,
        moment=add(old.moment, new.moment),
        rows=add(old.rows, new.rows),
    )
