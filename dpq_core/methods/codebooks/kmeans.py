"""k-means over all codebooks of a tensor at once: weighted, stochastically relaxed (SR-C), batched.

See PQF, arXiv 2010.15703, section 3.3, and docs/algorithms.md#kmeans: codes come from the clean
subvectors, and the codebook update sees noise that fades as ``(1 - i / I)^p``, which lets codewords
escape poor minima.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core import kernels
from dpq_core.errors import SpecError
from dpq_core.grouping import Grouping
from dpq_core.kernels.cpu.threads import one_torch_thread
from dpq_core.methods.codebooks.kmeans_init import initial_codebooks
from dpq_core.spec import KMeansSpec

SPLIT_NOISE = 1e-3
"""Distance of a split-off codeword from its parent, in standard deviations of the codebook."""


@dataclass(frozen=True, kw_only=True)
class IterationStats:
    """Record of one iteration of k-means.

    Attributes:
        objective: weighted mean squared distance per subvector, of the clean assignment.
        moved: subvectors whose code changed.
        empty: codewords without members, over all codebooks.
        seconds: wall time.
    """

    objective: float
    moved: int
    empty: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class KMeansResult:
    """Learned codebooks and the nearest codewords in exactly these codebooks.

    Attributes:
        codebooks: float32 [B, K, d].
        codes: int32 [G, P].
        stats: one record per iteration, tail included.
    """

    codebooks: Tensor
    codes: Tensor
    stats: tuple[IterationStats, ...]


def kmeans(
    subvectors: Tensor,
    grouping: Grouping | None = None,
    *,
    K: int,
    spec: KMeansSpec,
    seed: int,
    weights: Tensor | None = None,
) -> KMeansResult:
    """Learn the codebooks of some subvectors and assign every subvector to its codeword.

    The same arguments give the same bytes, whatever the number of threads. A codebook of fewer
    distinct subvectors than K keeps duplicate codewords, which no code refers to.

    Args:
        subvectors: float32 [G, d, P].
        grouping: grouping of the subvectors; None gives every group its own codebook. A padded
            last group that shares its codebook is only assigned; alone, it is trained (zero in the
            pad).
        K: codewords per codebook.
        spec: iterations, noise, initialisation.
        seed: the only source of randomness.
        weights: float32 [G, P], not negative; None weighs all subvectors alike.

    Raises:
        SpecError: shapes do not fit, or subvectors or weights are NaN, infinite or negative.
    """
    grouping = grouping or Grouping.of_subvectors(subvectors.shape)
    passes = kernels.lloyd(subvectors, grouping, K=K, weights=weights)
    if weights is not None and bool((weights < 0).any()):
        raise SpecError("weights of points must not be negative")
    moments = passes.moments()
    if not bool(torch.isfinite(moments).all()) or not _padded_group_finite(subvectors, grouping):
        raise SpecError("weights hold NaN or infinite values")
    spec = spec.resolved(grouping.d, K)
    with one_torch_thread(len(moments) * K * grouping.d):
        generator = torch.Generator(subvectors.device).manual_seed(seed)
        books = initial_codebooks(
            subvectors, weights, grouping, K=K, method=spec.init, generator=generator
        )
        update = _Update(moments, generator)
        stats = []
        for i in range(spec.iterations + spec.tail):
            begin = time.perf_counter()
            noisy = i < spec.iterations and spec.noise_power > 0
            scale = (1 - i / spec.iterations) ** spec.noise_power if noisy else 0.0
            moved, sums = passes.step(books)
            last = i == spec.iterations + spec.tail - 1
            objective, empty, books = update(books, sums, scale, 0.0 if last else SPLIT_NOISE)
            seconds = time.perf_counter() - begin
            stats.append(
                IterationStats(objective=objective, moved=moved, empty=empty, seconds=seconds)
            )
        passes.assign(books)
        return KMeansResult(codebooks=books, codes=passes.result(), stats=tuple(stats))


def _padded_group_finite(subvectors: Tensor, grouping: Grouping) -> bool:
    """Whether a padded last group, which the moments may leave out, holds finite values only."""
    return grouping.pad == 0 or bool(torch.isfinite(subvectors[-1]).all())


class _Update:
    """The update of all codebooks at once, from sums over the members of their codewords.

    Args:
        moments: float64 [B, 2 d + 1]: sum w x, sum w x^2 (per coordinate), sum w.
        generator: generator of the noise.
    """

    def __init__(self, moments: Tensor, generator: torch.Generator) -> None:
        d = moments.shape[1] // 2
        weight = moments[:, -1:].clamp_min(torch.finfo(torch.float64).tiny)
        mean = moments[:, :d] / weight
        variance = (moments[:, d : 2 * d] / weight - mean.square()).clamp_min(0)
        self.sigma = variance.sqrt().float()[:, None]  # [B, 1, d]
        self.energy = float(moments[:, d : 2 * d].sum())  # sum w |x|^2
        self.weight = float(weight.sum())
        self.generator = generator

    def __call__(
        self, books: Tensor, sums: Tensor, scale: float, split: float
    ) -> tuple[float, int, Tensor]:
        """Compute the next codebooks.

        Args:
            books: float32 [B, K, d] that the subvectors were assigned to.
            sums: float64 [B, K, d + 1 or d + 2]: sum w x, sum w (, sum w^2).
            scale: scale of the noise, in standard deviations of the codebook's subvectors.
            split: distance of a split-off codeword from its parent, in the same unit; 0 after the
                last iteration, when it would never become the mean of anything.

        Returns:
            The objective of the assignment to ``books``, the number of empty codewords, and the
            new codebooks.
        """
        d = books.shape[2]
        total, weight = sums[..., :d], sums[..., d : d + 1]
        # sum w |x - c|^2 = sum w |x|^2 + sum_k c_k . (n_k c_k - 2 sum_k): no pass over the points.
        old = books.double()
        cross = torch.addcmul(total * -2, old, weight).mul_(old).sum()
        objective = max(0.0, self.energy + float(cross)) / self.weight
        used = weight > 0
        empty = used.numel() - int(used.sum())
        mean = (total / weight).float()
        if empty:
            mean = torch.where(used, mean, books)
        if scale > 0:
            # SR-C adds T(i) sigma eps to every member before the mean. The mean of n such terms is
            # T(i) sigma eps / sqrt(n) (weighted: times sqrt(sum w^2) / sum w): one draw per
            # codeword has exactly that distribution.
            spread = sums[..., d + 1 :].sqrt() / weight if sums.shape[2] > d + 1 else weight.rsqrt()
            noise = self._normal(books) * self.sigma * (scale * spread).float()
            mean += torch.where(used, noise, 0) if empty else noise
        return objective, empty, self._split(mean, weight[..., 0], split) if empty else mean

    def _split(self, books: Tensor, weight: Tensor, split: float) -> Tensor:
        """Move each empty codeword next to one of the fullest of its codebook.

        The r-th empty codeword splits the r-th fullest cluster (of those with members, in turns).
        The parent stays at its mean, so that a split never raises the objective.
        """
        order = weight.argsort(dim=1, descending=True, stable=True)  # empty ones come last
        members = (weight > 0).sum(dim=1, keepdim=True).clamp_min(1)
        rank = torch.arange(weight.shape[1], device=weight.device).expand_as(weight)
        parent = order.gather(1, (rank - members).clamp_min(0) % members)  # [B, K] by rank
        index = parent[..., None].expand_as(books)
        children = books.gather(1, index) + split * self.sigma * self._normal(books)
        is_child = (rank >= members)[..., None]
        placed = torch.where(is_child, children, books.gather(1, order[..., None].expand_as(books)))
        return torch.empty_like(books).scatter_(1, order[..., None].expand_as(books), placed)

    def _normal(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape of a tensor."""
        return torch.randn(like.shape, generator=self.generator, device=like.device)
