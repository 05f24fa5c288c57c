"""Harmonics in training: symbols along the axes of the file, or codes and their codewords."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dpq_core.data.task import EStepStats
from dpq_core.errors import AdapterError
from dpq_gaussian.calibration import kernels
from dpq_gaussian.calibration.latents import Stored, harmonics_of
from dpq_gaussian.calibration.straight_through import through
from dpq_gaussian.codec import codebooks, models
from dpq_gaussian.codec.harmonics import BASIS_SCALE, gather
from dpq_gaussian.codec.layout import CHUNK, Ints, value_groups
from dpq_gaussian.policy import Policy

FloatArray = npt.NDArray[np.float32]
Sequences = dict[str, tuple[Ints, Ints]]

DEAD_ZONE = Policy.dead_zone
"""As the encoder rounds."""


def array(tensor: Tensor) -> npt.NDArray[Any]:
    """On the CPU, where the codec works."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


class Harmonics(nn.Module):
    """What of a file tells its harmonics."""

    @abstractmethod
    def sequences(self, levels: Any, rows: slice) -> Sequences:
        """Sequences of symbols of one chunk; ``levels`` as ``levels()`` gives them."""

    @abstractmethod
    def levels(self, thrift: float = 0.0) -> Any:
        """All latents, rounded; see ``SceneStudent.rounded``."""

    @abstractmethod
    def table(self) -> FloatArray:
        """Axes or codebooks as a reader has them."""

    @abstractmethod
    def stored_table(self, levels: Any) -> bytes:
        """Axes or codebooks as the file holds them."""


class AxisHarmonics(Harmonics):
    """Transform coding (FORMAT.md, G9): latents along the principal axes, in steps."""

    def __init__(self, stored: Stored) -> None:
        """Start within the bins of the file."""
        super().__init__()
        latents, steps = harmonics_of(stored, DEAD_ZONE)
        self.latents = nn.Parameter(torch.from_numpy(latents))  # [n, R]
        p, self._classes = stored.parameters, stored.classes
        self.boost = p.harmonic_boost
        self._axes, self._steps = stored.table, steps
        self._keep = p.harmonic_keep
        self._gains = np.array(p.harmonic_gains, np.float32)[self._classes]

    def levels(self, thrift: float = 0.0) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int32]]:
        """Symbols ``[n, R]`` and how many of them are stored ``[n]``."""
        latents = array(self.latents)
        found = kernels.levels(latents, DEAD_ZONE)
        if not thrift:
            return found
        cheaper = kernels.cheaper(latents, found[0], self._classes, thrift, self.boost)
        return kernels.levels(cheaper, DEAD_ZONE)

    def sequences(self, levels: Any, rows: slice) -> Sequences:
        """``count`` and ``value``."""
        symbols, counts, classes = levels[0][rows], levels[1][rows], self._classes[rows]
        groups = value_groups(classes, counts)
        return {"count": (counts, classes), "value": (gather(symbols, counts), groups)}

    def table(self) -> FloatArray:
        """Axes ``[R, 3 M]``."""
        return self._axes

    def stored_table(self, levels: Any) -> bytes:
        """The axes that are used."""
        used = self._axes[: int(levels[1].max(initial=0))]
        return models.axes_to_bytes(np.rint(used * BASIS_SCALE).astype(np.int8))

    def forward(self, restored: Tensor) -> Tensor:
        """Harmonics ``[n, M, 3]`` as they are, whose gradient goes to the latents."""
        return cast(Tensor, _Along.apply(self.latents, restored, self))  # type: ignore[no-untyped-call]

    def pulled(self, grads: FloatArray) -> FloatArray:
        """Gradients by the latents ``[n, R]`` of those by the harmonics ``[n, 3 M]``."""
        pulled = np.empty((len(grads), len(self._axes)), np.float32)
        for first in range(0, len(grads), CHUNK):
            rows = slice(first, first + CHUNK)
            added = kernels.adjoint(grads[rows], self._gains[rows], self._keep)
            pulled[rows] = (added @ self._axes.T) * self._steps[rows, None]
        return pulled


class _Along(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: Tensor, restored: Tensor, owner: AxisHarmonics) -> Tensor:
        ctx.owner = owner
        return restored.view_as(restored)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        found = ctx.owner.pulled(array(grads[0]).reshape(len(grads[0]), -1))
        return torch.from_numpy(found).to(grads[0].device), None, None


class CodeHarmonics(Harmonics):
    """Product quantization (FORMAT.md, G11): codewords are trained, codes chosen anew.

    Beside the codewords every Gaussian has a target, which begins at the original's harmonics and
    gets the gradient of its codewords (METHODS 8); the E-step gives it the codewords nearest to it.
    """

    codes: Tensor

    def __init__(self, stored: Stored) -> None:
        """Start with codes and codewords of the file."""
        super().__init__()
        spec = stored.parameters.harmonic_spec
        if spec is None:
            raise AdapterError("the harmonics of this file are not codes")
        self._spec, self._classes = spec, stored.classes
        n, self._coefficients = len(self._classes), stored.parameters.coefficients
        self._cut = codebooks.partition(n, self._coefficients, spec)
        wanted = stored.original.sh_rest
        lost = float(np.sqrt(np.square(wanted - stored.decoded.sh_rest).mean()))
        # What a step is to other attributes: uniform errors within it would be as large.
        self._unit = max(lost, 1e-6) * 12**0.5
        books = torch.from_numpy(stored.table)
        self.books = nn.Parameter(books / self._unit)  # [C, K, d]
        self.targets = nn.Parameter(torch.from_numpy(wanted) / self._unit)  # [n, M, 3]
        self.register_buffer("codes", torch.from_numpy(stored.harmonics.T.astype(np.int64)))

    def levels(self, thrift: float = 0.0) -> npt.NDArray[np.int32]:
        """Codes ``[G, n]``; all take about as many bits."""
        return array(self.codes).astype(np.int32)

    def sequences(self, levels: Any, rows: slice) -> Sequences:
        """``code0``, ``code1``, ..."""
        classes = self._classes[rows]
        codes = [np.ascontiguousarray(code) for code in levels[:, rows]]
        return {f"code{group}": (code, classes) for group, code in enumerate(codes)}

    def table(self) -> FloatArray:
        """Codebooks ``[C, K, d]``, rounded to float16."""
        return array((self.books * self._unit).half().float())

    def stored_table(self, levels: Any) -> bytes:
        """The codebooks."""
        return codebooks.to_bytes(self.table())

    def forward(self, restored: Tensor) -> Tensor:
        """Harmonics ``[n, M, 3]`` as they are; gradients go to the codewords and the targets."""
        tie = self._cut.tie
        parts = [self.books[group // tie][code] for group, code in enumerate(self.codes)]
        numbers = torch.cat(parts, dim=1)[:, : self._cut.cols]
        books = self._cut.from_matrix(numbers).swapaxes(1, 2)
        return through(restored, (books + self.targets) * self._unit)

    @torch.no_grad()
    def step(self, limit: float, progress: float) -> EStepStats:
        """E-step: the codewords nearest to the targets, those that gain most first."""
        books, before = self.table(), self.levels()
        targets = array(self.targets * self._unit)
        nearest = codebooks.assign(targets, books, self._spec)
        gains = self._errors(targets, before, books) - self._errors(targets, nearest, books)
        gains *= np.exp2(2.0 * self._classes)  # squares of the amplitude with which it is seen
        wanted = (nearest != before) & (gains > 0)
        allowed = int(limit * before.size)
        if wanted.sum() > allowed:
            ranked = np.argsort(np.where(wanted, -gains, np.inf), axis=None, kind="stable")
            kept = np.zeros(before.size, bool)
            kept[ranked[:allowed]] = True
            wanted &= kept.reshape(before.shape)
        after = np.where(wanted, nearest, before)
        self.codes.copy_(torch.from_numpy(after.astype(np.int64)))
        changed, usage = int(wanted.sum()), self._usage(after)
        return EStepStats(changed=changed, total=before.size, dead=usage[0], perplexity=usage[1])

    def _errors(
        self, targets: FloatArray, codes: npt.NDArray[np.int32], books: FloatArray
    ) -> npt.NDArray[np.float64]:
        """Squared distances of each subspace ``[G, n]``."""
        restored = codebooks.restore(codes, books, self._coefficients, self._spec)
        apart = torch.from_numpy(restored.reshape(targets.shape) - targets).swapaxes(1, 2)
        squares = self._cut.to_subvectors(self._cut.to_matrix(apart.contiguous())).double() ** 2
        return np.asarray(squares.sum(dim=1).numpy())

    def _usage(self, codes: npt.NDArray[np.int32]) -> tuple[float, float]:
        """Share of codewords without codes, and perplexity of their usage over their number."""
        K = self._spec.K
        book = np.arange(len(codes))[:, None] // self._cut.tie
        counts = np.bincount((book * K + codes).ravel(), minlength=self._cut.codebooks * K)
        share = counts.reshape(-1, K) / counts.reshape(-1, K).sum(axis=1, keepdims=True)
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(axis=1)
        return float((counts == 0).mean()), float(np.exp(entropy).mean() / K)


def harmonics(stored: Stored) -> Harmonics | None:
    """As the file codes them; None where it has none."""
    if not stored.parameters.coefficients:
        return None
    coded = stored.parameters.harmonic_spec is not None
    return CodeHarmonics(stored) if coded else AxisHarmonics(stored)
