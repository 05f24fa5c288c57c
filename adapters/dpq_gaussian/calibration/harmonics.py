"""Trainable spherical harmonics: transform coefficients, or codes with their codewords."""

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
from dpq_gaussian.calibration.latents import StoredScene, harmonics_of
from dpq_gaussian.calibration.straight_through import straight_through
from dpq_gaussian.codec import codebooks, models
from dpq_gaussian.codec.harmonics import BASIS_SCALE, gather
from dpq_gaussian.codec.layout import CHUNK, Ints, value_groups
from dpq_gaussian.policy import Policy

FloatArray = npt.NDArray[np.float32]
Sequences = dict[str, tuple[Ints, Ints]]

DEAD_ZONE = Policy.dead_zone
"""As the encoder rounds."""


def array(tensor: Tensor) -> npt.NDArray[Any]:
    """The values of a tensor as a contiguous array on the CPU."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


class Harmonics(nn.Module):
    """The trainable form of the spherical harmonics of a file."""

    @abstractmethod
    def sequences(self, levels: Any, rows: slice) -> Sequences:
        """The sequences of symbols of one chunk, from the rounded latents of ``levels()``."""

    @abstractmethod
    def levels(self, thrift: float = 0.0) -> Any:
        """Rounds all latents; ``thrift`` favours cheaper symbols (see ``SceneStudent.rounded``)."""

    @abstractmethod
    def table(self) -> FloatArray:
        """Axes or codebooks as a reader has them."""

    @abstractmethod
    def stored_table(self, levels: Any) -> bytes:
        """Axes or codebooks as the file holds them."""


class AxisHarmonics(Harmonics):
    """Harmonics coded by a transform (FORMAT.md, G9): latents along principal axes, in steps."""

    def __init__(self, stored: StoredScene) -> None:
        """Begin with the original's coefficients, limited to the bins of the stored symbols."""
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
        rounded = kernels.round_with_dead_zone(latents, DEAD_ZONE)
        if not thrift:
            return rounded
        cheaper = kernels.moved_to_fewer_bits(
            latents, rounded[0], self._classes, thrift, self.boost
        )
        return kernels.round_with_dead_zone(cheaper, DEAD_ZONE)

    def sequences(self, levels: Any, rows: slice) -> Sequences:
        """The sequences ``count`` and ``value`` of one chunk."""
        symbols, counts, classes = levels[0][rows], levels[1][rows], self._classes[rows]
        groups = value_groups(classes, counts)
        return {"count": (counts, classes), "value": (gather(symbols, counts), groups)}

    def table(self) -> FloatArray:
        """The principal axes ``[R, 3 M]`` of the file."""
        return self._axes

    def stored_table(self, levels: Any) -> bytes:
        """The principal axes that any Gaussian uses, as the file stores them."""
        used = self._axes[: int(levels[1].max(initial=0))]
        return models.axes_to_bytes(np.rint(used * BASIS_SCALE).astype(np.int8))

    def forward(self, restored: Tensor) -> Tensor:
        """Passes harmonics ``[n, M, 3]`` through unchanged and their gradient to the latents."""
        return cast(Tensor, _Along.apply(self.latents, restored, self))  # type: ignore[no-untyped-call]

    def pulled(self, grads: FloatArray) -> FloatArray:
        """Transforms gradients by harmonics ``[n, 3 M]`` to gradients by latents ``[n, R]``."""
        pulled = np.empty((len(grads), len(self._axes)), np.float32)
        for first in range(0, len(grads), CHUNK):
            rows = slice(first, first + CHUNK)
            added = kernels.prediction_adjoint(grads[rows], self._gains[rows], self._keep)
            pulled[rows] = (added @ self._axes.T) * self._steps[rows, None]
        return pulled


class _Along(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: Tensor, restored: Tensor, owner: AxisHarmonics) -> Tensor:
        ctx.owner = owner
        return restored.view_as(restored)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gradient = ctx.owner.pulled(array(grads[0]).reshape(len(grads[0]), -1))
        return torch.from_numpy(gradient).to(grads[0].device), None, None


class CodeHarmonics(Harmonics):
    """Harmonics coded by product quantization (FORMAT.md, G11): codewords train, codes are chosen.

    Beside the codewords every Gaussian has a target, which begins at the original's harmonics and
    gets the gradient of its codewords (docs/algorithms.md); the E-step gives it the codewords
    nearest to it.
    """

    codes: Tensor

    def __init__(self, stored: StoredScene) -> None:
        """Begin with the codes and codewords of the file."""
        super().__init__()
        spec = stored.parameters.harmonic_spec
        if spec is None:
            raise AdapterError("the harmonics of this file are not codes")
        self._spec, self._classes = spec, stored.classes
        n, self._coefficients = len(self._classes), stored.parameters.coefficients
        self._cut = codebooks.partition(n, self._coefficients, spec)
        original = stored.original.sh_rest
        lost = float(np.sqrt(np.square(original - stored.decoded.sh_rest).mean()))
        # What a step is to other attributes: uniform errors within it would be as large.
        self._unit = max(lost, 1e-6) * 12**0.5
        books = torch.from_numpy(stored.table)
        self.books = nn.Parameter(books / self._unit)  # [C, K, d]
        self.targets = nn.Parameter(torch.from_numpy(original) / self._unit)  # [n, M, 3]
        self.register_buffer("codes", torch.from_numpy(stored.harmonics.T.astype(np.int64)))

    def levels(self, thrift: float = 0.0) -> npt.NDArray[np.int32]:
        """The codes ``[G, n]``; thrift has no effect, since all codes cost about the same bits."""
        return array(self.codes).astype(np.int32)

    def sequences(self, levels: Any, rows: slice) -> Sequences:
        """The sequences ``code0``, ``code1``, ... of one chunk."""
        classes = self._classes[rows]
        codes = [np.ascontiguousarray(code) for code in levels[:, rows]]
        return {f"code{group}": (code, classes) for group, code in enumerate(codes)}

    def table(self) -> FloatArray:
        """Codebooks ``[C, K, d]``, rounded to float16."""
        return array((self.books * self._unit).half().float())

    def stored_table(self, levels: Any) -> bytes:
        """The codebooks as the file stores them."""
        return codebooks.to_bytes(self.table())

    def forward(self, restored: Tensor) -> Tensor:
        """Passes harmonics ``[n, M, 3]`` through, their gradient to codewords and targets."""
        sharing = self._cut.groups_per_codebook
        parts = [self.books[group // sharing][code] for group, code in enumerate(self.codes)]
        numbers = torch.cat(parts, dim=1)[:, : self._cut.cols]
        books = self._cut.from_matrix(numbers).swapaxes(1, 2)
        return straight_through(restored, (books + self.targets) * self._unit)

    @torch.no_grad()
    def step(self, limit: float, progress: float) -> EStepStats:
        """E-step: reassigns codes to the nearest codewords, the largest gains first."""
        books, before = self.table(), self.levels()
        targets = array(self.targets * self._unit)
        nearest = codebooks.assign(targets, books, self._spec)
        gains = self._errors(targets, before, books) - self._errors(targets, nearest, books)
        gains *= np.exp2(2.0 * self._classes)  # squares of the amplitude with which it is seen
        improved = (nearest != before) & (gains > 0)
        allowed = int(limit * before.size)
        if improved.sum() > allowed:
            ranked = np.argsort(np.where(improved, -gains, np.inf), axis=None, kind="stable")
            kept = np.zeros(before.size, bool)
            kept[ranked[:allowed]] = True
            improved &= kept.reshape(before.shape)
        after = np.where(improved, nearest, before)
        self.codes.copy_(torch.from_numpy(after.astype(np.int64)))
        changed, usage = int(improved.sum()), self._usage(after)
        return EStepStats(changed=changed, total=before.size, dead=usage[0], perplexity=usage[1])

    def _errors(
        self, targets: FloatArray, codes: npt.NDArray[np.int32], books: FloatArray
    ) -> npt.NDArray[np.float64]:
        """Squared distances ``[G, n]`` between targets and codewords in each subspace."""
        restored = codebooks.restore(codes, books, self._coefficients, self._spec)
        apart = torch.from_numpy(restored.reshape(targets.shape) - targets).swapaxes(1, 2)
        squares = self._cut.to_subvectors(self._cut.to_matrix(apart.contiguous())).double() ** 2
        return np.asarray(squares.sum(dim=1).numpy())

    def _usage(self, codes: npt.NDArray[np.int32]) -> tuple[float, float]:
        """The share of unused codewords, and the usage perplexity divided by K."""
        K = self._spec.K
        book = np.arange(len(codes))[:, None] // self._cut.groups_per_codebook
        counts = np.bincount((book * K + codes).ravel(), minlength=self._cut.codebooks * K)
        share = counts.reshape(-1, K) / counts.reshape(-1, K).sum(axis=1, keepdims=True)
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(axis=1)
        return float((counts == 0).mean()), float(np.exp(entropy).mean() / K)


def harmonics(stored: StoredScene) -> Harmonics | None:
    """Creates the trainable harmonics of a file; None where the scene has none."""
    if not stored.parameters.coefficients:
        return None
    coded = stored.parameters.harmonic_spec is not None
    return CodeHarmonics(stored) if coded else AxisHarmonics(stored)
