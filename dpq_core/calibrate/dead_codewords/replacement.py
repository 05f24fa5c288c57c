"""Dead codewords: how long unused, when replaced, by what (docs/algorithms.md#dead-codewords).

Two levels: a slot (b, k) of a codebook is dead while no subvector uses it, and is then pointed to
another pool vector, which changes nothing yet. A pool vector that no slot in use names for
``DeadRule.after`` steps is replaced by a badly served subvector. Codebooks without a pool are the
case in which every slot has a vector of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.calibrate.dead_codewords.reservoir import Reservoir
from dpq_core.kernels.cpu.nearest import nearest


@dataclass(frozen=True, kw_only=True)
class DeadRule:
    """When and how much is replaced.

    See docs/algorithms.md#dead-codewords; ``tau_dead`` read as steps.

    Attributes:
        after: steps without use until a vector is dead.
        share: vectors replaced per event at most, of all (but one always may be).
        slot_share: dead slots pointed elsewhere per event at most, of all slots.
        noise: added to a new vector, relative to the RMS coordinate of all new ones.
        until: no replacement from this share of the training on, so that the rest converges.
    """

    after: int = 256
    share: float = 0.01
    slot_share: float = 0.05
    noise: float = 1e-3
    until: float = 0.8


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """What one event left.

    Attributes:
        vectors: as given, some replaced.
        index: as given, some slots pointed elsewhere; None without a pool.
        age: int64 [V], zero where replaced.
        replaced: int64 [r], the vectors replaced, whose optimizer state must be reset.
        disturbed: int64 [s], slots b K + k that had users and name another vector now: their
            subvectors need new codes.
        repointed: dead slots that were pointed to another vector that lives.
    """

    vectors: Tensor
    index: Tensor | None
    age: Tensor
    replaced: Tensor
    disturbed: Tensor
    repointed: int


@dataclass(frozen=True, kw_only=True)
class UsageStats:
    """How well the codewords are used.

    Attributes:
        dead_slots: share of the slots (b, k) that no subvector uses.
        dead_vectors: share of the vectors that no slot in use names.
        slot_perplexity: exp(entropy) of the usage of a codebook's slots, 1..K; mean over codebooks.
        vector_perplexity: exp(entropy) of the usage of the vectors, 1..V.
        revived: vectors replaced.
        repointed: dead slots pointed elsewhere.
    """

    dead_slots: float
    dead_vectors: float
    slot_perplexity: float
    vector_perplexity: float
    revived: int
    repointed: int


def vector_usage(usage: Tensor, index: Tensor | None, V: int) -> Tensor:
    """Subvectors that use each vector, int64 [V].

    Args:
        usage: int64 [B, K], subvectors that use each slot.
        index: integer [B, K], the vector of each slot; None where V = B K and they are the same.
        V: vectors.
    """
    flat = usage.reshape(-1)
    if index is None:
        return flat
    return flat.new_zeros(V).index_add_(0, index.reshape(-1).long(), flat)


def aged(age: Tensor, used: Tensor, steps: int) -> Tensor:
    """Ages int64 [V] after ``steps`` more steps: zero where used (bool or counts [V])."""
    return torch.where(used > 0, 0, age + steps)


def usage_stats(
    usage: Tensor, index: Tensor | None, V: int, revival: Replacement | None = None
) -> UsageStats:
    """Statistics of one E-step; the first three arguments as in ``vector_usage``."""
    by_vector = vector_usage(usage, index, V)
    return UsageStats(
        dead_slots=float((usage == 0).double().mean()),
        dead_vectors=float((by_vector == 0).double().mean()),
        slot_perplexity=float(_perplexity(usage).mean()),
        vector_perplexity=float(_perplexity(by_vector)),
        revived=0 if revival is None else len(revival.replaced),
        repointed=0 if revival is None else revival.repointed,
    )


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
        vectors: pool [V, d]; or, with ``index=None``, codebooks [B, K, d] with V = B K.
        index: integer [B, K], the pool vector of each slot, or None.
        usage: int64 [B, K], subvectors that use each slot now.
        age: int64 [V], see ``aged``.
        reservoir: drawn from.
        groups_per_codebook: group j uses codebook ``j // groups_per_codebook``.
        progress: share of the training that is done, 0..1.
        rule: limits.
    """
    rule = rule or DeadRule()
    event = _Event(vectors, index, usage, age, groups_per_codebook)
    if progress < rule.until:
        event.replace_vectors(reservoir, rule)
        event.repoint_slots(reservoir, rule)
    return event.result()


class _Event:
    """One event of ``replace_dead``, on copies. Choices are made on the CPU: there are few."""

    def __init__(
        self, vectors: Tensor, index: Tensor | None, usage: Tensor, age: Tensor, sharing: int
    ) -> None:
        self.vectors = vectors
        self.flat = vectors.detach().clone().view(-1, vectors.shape[-1])  # [V, d]
        self.index = None if index is None else index.clone()
        self.age = age.clone()
        self.usage = usage.cpu()
        (self.B, self.K), self.sharing = usage.shape, sharing
        self.used = vector_usage(self.usage, None if index is None else index.cpu(), len(self.flat))
        self.taken = torch.zeros(self.B, self.K, dtype=torch.bool)
        self.replaced: list[int] = []
        self.repointed = 0

    def replace_vectors(self, reservoir: Reservoir, rule: DeadRule) -> None:
        """Dead vectors, the oldest first."""
        age = self.age.cpu()
        dead = ((age >= rule.after) & (self.used == 0)).nonzero()[:, 0]
        dead = dead[age[dead].argsort(descending=True, stable=True)]
        dead = dead[: max(1, int(rule.share * len(age)))]
        if len(dead) == 0:
            return
        groups = torch.arange(self.B * self.sharing) // self.sharing
        eligible = None
        if self.index is None:
            eligible = torch.zeros(self.B, dtype=torch.bool)
            eligible[dead // self.K] = True
            eligible = eligible[groups]
        drawn, group = reservoir.draw(len(dead), eligible=eligible)
        waiting = dead.tolist()
        sources: list[int] = []
        for n, book in enumerate((group // self.sharing).tolist()):
            vector = self._place(waiting, book)
            if vector is not None:
                waiting.remove(vector)
                self.replaced.append(vector)
                sources.append(n)
        if not sources:
            return
        new = drawn[sources]
        noise = torch.randn(new.shape, generator=reservoir.generator())
        new = new + noise * (rule.noise * new.square().mean().sqrt())
        self.flat[self.replaced] = new.to(self.flat)
        self.age[self.replaced] = 0

    def _place(self, waiting: list[int], book: int) -> int | None:
        """The dead vector to use for a subvector of a codebook; its slot is taken."""
        if self.index is None:
            slot = next((v for v in waiting if v // self.K == book), None)
            if slot is not None:
                self.taken[book, slot % self.K] = True
            return slot
        free = self.usage[book].masked_fill(self.taken[book], torch.iinfo(torch.int64).max)
        k = int(free.argmin())
        if bool(self.taken[book, k]):
            return None
        self.taken[book, k] = True
        self.index[book, k] = waiting[0]
        return waiting[0]

    def repoint_slots(self, reservoir: Reservoir, rule: DeadRule) -> None:
        """Dead slots, to the vectors nearest to drawn subvectors of their codebooks."""
        if self.index is None:
            return
        free = (self.usage == 0) & ~self.taken
        limit = int(rule.slot_share * free.numel())
        count = min(limit, int(free.sum()))
        if count == 0:
            return
        eligible = free.any(1)[torch.arange(self.B * self.sharing) // self.sharing]
        drawn, group = reservoir.draw(count, eligible=eligible)
        if len(drawn) == 0:
            return
        near = nearest(drawn.to(self.flat).float(), self.flat.float())[0]
        for vector, book in zip(near.tolist(), (group // self.sharing).tolist(), strict=True):
            slots = free[book].nonzero()[:, 0]
            if len(slots):
                k = int(slots[0])
                free[book, k] = False
                self.index[book, k] = vector
                self.repointed += 1

    def result(self) -> Replacement:
        """What is left of it all."""
        disturbed = torch.empty(0, dtype=torch.int64)
        if self.index is not None:
            disturbed = (self.taken & (self.usage > 0)).view(-1).nonzero()[:, 0]
        device = self.flat.device
        return Replacement(
            vectors=self.flat.view_as(self.vectors),
            index=self.index,
            age=self.age,
            replaced=torch.tensor(self.replaced, dtype=torch.int64, device=device),
            disturbed=disturbed.to(device),
            repointed=self.repointed,
        )
