"""Replacement of dead codewords by badly served subvectors (docs/algorithms.md#dead-codewords).

Two levels: a slot (b, k) of a codebook is dead while no subvector uses it, and is then pointed to
another pool vector, which changes nothing yet. A pool vector that no slot in use names for
``DeadRule.after`` steps is replaced by a badly served subvector. Codebooks without a pool are the
case in which every slot has its own vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.calibrate.dead_codewords.reservoir import Reservoir
from dpq_core.kernels.cpu.nearest import nearest


@dataclass(frozen=True, kw_only=True)
class DeadRule:
    """Limits of one replacement of dead codewords (docs/algorithms.md#dead-codewords).

    Attributes:
        after: steps without use until a vector is dead.
        share: largest share of the vectors that is replaced at once (one vector always may be).
        slot_share: largest share of the slots that is pointed to other vectors at once.
        noise: noise added to a new vector, relative to the RMS coordinate of all new ones.
        until: share of the training after which nothing is replaced, so that the rest converges.
    """

    after: int = 256
    share: float = 0.01
    slot_share: float = 0.05
    noise: float = 1e-3
    until: float = 0.8


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """The codewords after a replacement of dead ones.

    Attributes:
        vectors: pool or codebooks, with some vectors replaced.
        index: the vector of each slot, with some slots changed; None without a pool.
        age: int64 ``[V]``, zero where replaced.
        replaced: int64 ``[r]``, indices of the replaced vectors, whose optimizer state must be
            reset.
    """

    vectors: Tensor
    index: Tensor | None
    age: Tensor
    replaced: Tensor


def vector_usage(usage: Tensor, index: Tensor | None, V: int) -> Tensor:
    """The number of subvectors that use each vector, int64 ``[V]``.

    Args:
        usage: int64 ``[B, K]``, number of subvectors that use each slot.
        index: integer ``[B, K]``, the vector of each slot; None where every slot has its own.
        V: number of vectors.
    """
    flat = usage.reshape(-1)
    if index is None:
        return flat
    return flat.new_zeros(V).index_add_(0, index.reshape(-1).long(), flat)


def aged(age: Tensor, used: Tensor, steps: int) -> Tensor:
    """The ages int64 ``[V]`` after ``steps`` more steps: zero where ``used [V]`` is positive."""
    return torch.where(used > 0, 0, age + steps)


def slot_statistics(usage: Tensor) -> tuple[float, float]:
    """The share of dead slots 0..1, and the mean perplexity of a codebook's slots 1..K.

    Args:
        usage: int64 ``[B, K]``, number of subvectors that use each slot.
    """
    return float((usage == 0).double().mean()), float(_perplexity(usage).mean())


def _perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) over the last axis; 0 log 0 = 0, and no counts at all give 1."""
    p = counts.double() / counts.sum(-1, keepdim=True).clamp_min(1)
    entropy: Tensor = torch.special.entr(p).sum(-1)
    return entropy.exp()


def replace_dead(
    vectors: Tensor,
    index: Tensor | None,
    usage: Tensor,
    age: Tensor,
    reservoir: Reservoir,
    *,
    groups_per_codebook: int,
    progress: float,
    rule: DeadRule | None = None,
) -> Replacement:
    """Replace dead vectors by drawn subvectors, and point dead slots to living vectors.

    The least used slot of a subvector's codebook is pointed to its new vector; without a pool
    the new vector takes the place of a dead one of that codebook.

    Args:
        vectors: pool ``[V, d]``; or, with ``index=None``, codebooks ``[B, K, d]`` with V = B K.
        index: integer ``[B, K]``, the pool vector of each slot, or None.
        usage: int64 ``[B, K]``, number of subvectors that use each slot now.
        age: int64 ``[V]``, see ``aged``.
        reservoir: subvectors to draw from.
        groups_per_codebook: group j uses codebook ``j // groups_per_codebook``.
        progress: share of the training that is done, 0..1.
        rule: limits; None for the defaults.
    """
    rule = rule or DeadRule()
    event = _ReplacementRun(vectors, index, usage, age, groups_per_codebook)
    if progress < rule.until:
        event.replace_vectors(reservoir, rule)
        event.repoint_slots(reservoir, rule)
    return event.result()


class _ReplacementRun:
    """One call of ``replace_dead``, on copies; its few choices are made on the CPU."""

    def __init__(
        self,
        vectors: Tensor,
        index: Tensor | None,
        usage: Tensor,
        age: Tensor,
        groups_per_codebook: int,
    ) -> None:
        self.vectors = vectors
        self.flat = vectors.detach().clone().view(-1, vectors.shape[-1])  # [V, d]
        self.index = None if index is None else index.clone()
        self.age = age.clone()
        self.usage = usage.cpu()
        self.B, self.K = usage.shape
        self.codebook_of = torch.arange(self.B * groups_per_codebook) // groups_per_codebook
        self.used = vector_usage(self.usage, None if index is None else index.cpu(), len(self.flat))
        self.taken = torch.zeros(self.B, self.K, dtype=torch.bool)
        self.replaced: list[int] = []

    def replace_vectors(self, reservoir: Reservoir, rule: DeadRule) -> None:
        """Replace dead vectors, the oldest first."""
        age = self.age.cpu()
        dead = ((age >= rule.after) & (self.used == 0)).nonzero()[:, 0]
        dead = dead[age[dead].argsort(descending=True, stable=True)]
        dead = dead[: max(1, int(rule.share * len(age)))]
        if len(dead) == 0:
            return
        eligible = None
        if self.index is None:
            eligible = torch.zeros(self.B, dtype=torch.bool)
            eligible[dead // self.K] = True
            eligible = eligible[self.codebook_of]
        drawn, group = reservoir.draw(len(dead), eligible=eligible)
        dead_vectors = dead.tolist()
        sources: list[int] = []
        for n, book in enumerate(self.codebook_of[group].tolist()):
            vector = self._place(dead_vectors, book)
            if vector is not None:
                dead_vectors.remove(vector)
                self.replaced.append(vector)
                sources.append(n)
        if not sources:
            return
        new = drawn[sources]
        noise = torch.randn(new.shape, generator=reservoir.generator())
        new = new + noise * (rule.noise * new.square().mean().sqrt())
        self.flat[self.replaced] = new.to(self.flat)
        self.age[self.replaced] = 0

    def _place(self, dead: list[int], book: int) -> int | None:
        """The dead vector that a subvector of a codebook replaces; marks its slot as taken."""
        if self.index is None:
            slot = next((v for v in dead if v // self.K == book), None)
            if slot is not None:
                self.taken[book, slot % self.K] = True
            return slot
        free = self.usage[book].masked_fill(self.taken[book], torch.iinfo(torch.int64).max)
        k = int(free.argmin())
        if bool(self.taken[book, k]):
            return None
        self.taken[book, k] = True
        self.index[book, k] = dead[0]
        return dead[0]

    def repoint_slots(self, reservoir: Reservoir, rule: DeadRule) -> None:
        """Point dead slots to the vectors nearest to drawn subvectors of their codebooks."""
        if self.index is None:
            return
        free = (self.usage == 0) & ~self.taken
        limit = int(rule.slot_share * free.numel())
        count = min(limit, int(free.sum()))
        if count == 0:
            return
        eligible = free.any(1)[self.codebook_of]
        drawn, group = reservoir.draw(count, eligible=eligible)
        if len(drawn) == 0:
            return
        near = nearest(drawn.to(self.flat).float(), self.flat.float())[0]
        for vector, book in zip(near.tolist(), self.codebook_of[group].tolist(), strict=True):
            slots = free[book].nonzero()[:, 0]
            if len(slots):
                k = int(slots[0])
                free[book, k] = False
                self.index[book, k] = vector

    def result(self) -> Replacement:
        """The codewords after the replacement."""
        device = self.flat.device
        return Replacement(
            vectors=self.flat.view_as(self.vectors),
            index=self.index,
            age=self.age,
            replaced=torch.tensor(self.replaced, dtype=torch.int64, device=device),
        )
