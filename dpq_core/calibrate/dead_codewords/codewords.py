"""Dead codewords of one weight during calibration: their age, and what takes their place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dpq_core.calibrate.dead_codewords.replacement import (
    DeadRule,
    Replacement,
    UsageStats,
    aged,
    replace_dead,
    usage_stats,
    vector_usage,
)
from dpq_core.calibrate.dead_codewords.reservoir import Reservoir
from dpq_core.methods.assignment.objective import Objective
from dpq_core.runtime.weight import PQWeight
from dpq_core.tensor.packing import pack, unpack

SHARE = 0.01
"""Of all subvectors, offered to the reservoir per E-step (docs/algorithms.md#dead-codewords)."""

AT_LEAST = 256
"""Subvectors offered per E-step, where there are as many."""


class Codewords:
    """The codewords of one weight: which are used, and a reservoir of what they serve badly.

    With additive stages, group j of stage s counts as group ``s * B * groups_per_codebook + j``, so
    that its codebook is found as without stages; its target is what the other stages leave.
    """

    def __init__(self, weight: PQWeight, *, after: int, interval: int, seed: int) -> None:
        """All codewords alive.

        Args:
            weight: in its trainable form.
            after: M-steps without use until a codeword is dead.
            interval: M-steps between two E-steps.
            seed: of the reservoir.
        """
        self._weight, self._after, self._interval = weight, after, interval
        self._reservoir = Reservoir(seed=seed)
        vectors = _vectors(weight)
        self._age = torch.zeros(vectors.numel() // vectors.shape[-1], dtype=torch.int64)
        self._before = self._age

    def age(self) -> None:
        """Another interval has passed: codewords that nothing uses get older."""
        weight = self._weight
        usage = slot_usage(weight, codes_of(weight))
        used = vector_usage(usage, _index(weight), len(self._age))
        self._age = aged(self._age, used.cpu(), self._interval)

    def replace_dead(self, objective: Objective, progress: float) -> Replacement:
        """Offer badly served subvectors to the reservoir; dead codewords become such subvectors.

        Args:
            objective: what the codes are to lower.
            progress: share of the training that is done.
        """
        weight, vectors, codes = self._weight, _vectors(self._weight), codes_of(self._weight)
        self._offer(objective, codes)
        self._before = self._age
        found = replace_dead(
            vectors.detach(),
            _index(weight),
            slot_usage(weight, codes),
            self._age.to(vectors.device),
            self._reservoir,
            groups_per_codebook=weight.partition.groups_per_codebook,
            progress=progress,
            rule=DeadRule(after=self._after),
        )
        self._age = found.age.cpu()
        with torch.no_grad():
            vectors.copy_(found.vectors)
        if found.index is not None:
            packed = pack(found.index, weight.partition.index_bits)
            weight.get_buffer("index_map").copy_(packed)
        return found

    def undo(self) -> None:
        """The last ``replace_dead`` was taken back: what was dead is as dead as before."""
        self._age = self._before

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {"age": self._age, **self._reservoir.state()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        plain = {name: value.cpu() for name, value in tensors.items()}
        self._age = plain.pop("age")
        self._reservoir = Reservoir.from_state(plain)

    def _offer(self, objective: Objective, codes: Tensor) -> None:
        """A random sample of targets, each with its output error by itself as its priority."""
        p = self._weight.partition
        books = self._weight.books().detach()
        count = min(p.groups * p.points, max(AT_LEAST, int(SHARE * p.groups * p.points)))
        draw = torch.randint(p.groups * p.points, (count,), generator=self._reservoir.generator())
        group, point = (draw // p.points).to(books.device), (draw % p.points).to(books.device)
        stage = torch.arange(p.stages, device=books.device)[:, None]
        own = books[
            stage * p.codebooks + group // p.groups_per_codebook,
            codes[stage * p.groups + group, point].long(),
        ]  # [stages, n, d]
        core = p.to_subvectors(objective.core)[group, :, point]  # [n, d]
        left, order = core - own.sum(0), objective.hessian.order
        blocks = torch.empty_like(objective.hessian.diagonal)
        blocks[order] = objective.hessian.diagonal  # by column group, not by step
        if p.orientation == "input":
            metric = blocks[group]  # [n, d, d]
            priority = torch.einsum("nd,nde,ne->n", left, metric, left)
            if objective.row_weight is not None:
                priority = priority * objective.row_weight[point]
        else:
            priority = left.square().sum(1) * blocks[point, 0, 0]
        number = stage * p.codebooks * p.groups_per_codebook + group
        targets = left + own
        self._reservoir.push(targets.flatten(0, 1), number.flatten(), priority.repeat(p.stages))


def codes_of(weight: PQWeight) -> Tensor:
    """Codes of a weight, int32 ``[stages * groups, points]``."""
    p = weight.partition
    return unpack(weight.codes, p.code_bits, p.points)


def slot_usage(weight: PQWeight, codes: Tensor) -> Tensor:
    """Subvectors that use each slot, int64 ``[stages * codebooks, K]``."""
    p = weight.partition
    line = torch.arange(len(codes), device=codes.device)
    book = line // p.groups * p.codebooks + line % p.groups // p.groups_per_codebook
    slots = p.stages * p.codebooks * p.K
    count = torch.bincount((codes + book[:, None] * p.K).view(-1), minlength=slots)
    return count.view(-1, p.K)


def statistics(weight: PQWeight, codes: Tensor) -> UsageStats:
    """How the codewords of a weight are used by some codes."""
    vectors = _vectors(weight)
    count = vectors.numel() // vectors.shape[-1]
    return usage_stats(slot_usage(weight, codes), _index(weight), count)


def vectors_name(weight: PQWeight) -> str:
    """Name of the parameter that holds the codewords: the pool where there is one."""
    return "pool" if weight.partition.pool else "codebooks"


def _vectors(weight: PQWeight) -> Tensor:
    return weight.parts()[vectors_name(weight)]


def _index(weight: PQWeight) -> Tensor | None:
    p = weight.partition
    return unpack(weight.get_buffer("index_map"), p.index_bits, p.K) if p.pool else None
