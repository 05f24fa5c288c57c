"""Moving averages of what the student's layers see, over E-steps and processes."""

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
class Seen:
    """The inputs of a layer, as a decaying sum.

    Attributes:
        count: rows, each times its decay; float64 ``[]``.
        moment: sum of x x^T ``[cols, cols]``; None for an embedding.
        rows: of an embedding: look-ups of each entry; else None.
    """

    count: Tensor
    moment: Tensor | None = None
    rows: Tensor | None = None

    def hessian(self, cols: int, device: torch.device) -> Tensor:
        """H = E[x x^T] ``[cols, cols]``; of an embedding, whose rows stand alone, the identity."""
        if self.moment is None:
            return torch.eye(cols, device=device)
        return (self.moment / self.count.clamp(min=1e-30)).float().to(device)


class Moments:
    """What the inputs of some layers look like; the recent past counts most.

    Batches that were seen n E-steps ago weigh rho^n, so that the mean needs no correction at its
    start. Layers that get the same tensor share one moment.
    """

    def __init__(self, student: nn.Module, paths: Sequence[str], rho: float) -> None:
        """Nothing seen yet.

        Args:
            student: holds the layers.
            paths: of the layers.
            rho: decay per E-step.
        """
        self._student, self._paths, self._rho = student, tuple(paths), rho
        self._seen: dict[str, Seen] = {}
        self._new: dict[str, Seen] = {}
        self._home: dict[str, str] = {}  # path -> the path whose moment it shares

    def collect(self, forward: Callable[[], T], workers: Workers) -> T:
        """Run ``forward`` and add what the layers saw, in all processes; returns its result."""
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
        for path, found in collector.statistics().items():
            key = first.setdefault(id(found), path)
            self._home[path] = key
            if key == path:
                self._new[key] = _sums(found)
        return result

    def of(self, path: str) -> Seen | None:
        """What the layer has seen; None if it did not run in the last ``collect``."""
        return self._seen.get(self._home.get(path, ""))

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs: ``path/field`` -> tensor."""
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
        self._seen = {path: Seen(**found) for path, found in fields.items()}


def _sums(found: LayerStatistics) -> Seen:
    """Means of a few batches as sums, which can be added up."""
    count = torch.tensor(found.count, dtype=torch.float64)
    if found.row_counts is not None:
        return Seen(count=count, rows=found.row_counts)
    assert found.hessian is not None  # only embeddings have no matrix
    return Seen(count=count.to(found.hessian.device), moment=found.hessian * found.count)


def _added(old: Seen | None, rho: float, new: Seen) -> Seen:
    """``rho * old + new``."""
    if old is None:
        return new

    def add(before: Tensor | None, now: Tensor | None) -> Tensor | None:
        return None if now is None else now if before is None else rho * before + now

    return Seen(
        count=rho * old.count + new.count,
        moment=add(old.moment, new.moment),
        rows=add(old.rows, new.rows),
    )
