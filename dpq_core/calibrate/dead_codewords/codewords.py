"""Codewords: the age of one weight's codewords, and the replacement of dead ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dpq_core.calibrate.dead_codewords.replacement import (
    DeadRule,
    Replacement,
    aged,
    replace_dead,
    vector_usage,
)
from dpq_core.calibrate.dead_codewords.reservoir import Reservoir
from dpq_core.methods.assignment.objective import Objective
from dpq_core.runtime.weight import PQWeight
from dpq_core.tensor.packing import pack, unpack

SHARE = 0.01
"""Share of subvectors offered to the reservoir per E-step (docs/algorithms.md#dead-codewords)."""

AT_LEAST = 256
"""Least number of subvectors offered per E-step."""


class Codewords:
    """The codewords of one weight: their ages, and a reservoir of badly served subvectors.

    With additive stages, group j of stage s counts as group ``s * B * groups_per_codebook + j``, so
    that its codebook is found as without stages; its target is what the other stages leave.
    """

    def __init__(self, weight: PQWeight, *, after: int, interval: int, seed: int) -> None:
        """Start with all codewords alive.

        Args:
            weight: the weight, in its trainable form.
            after: M-steps without use until a codeword is dead.
            interval: M-steps between two E-steps.
            seed: seed of the reservoir.
        """
        self._weight, self._after, self._interval = weight, after, interval
        self._reservoir = Reservoir(seed=seed)
        vectors = _vectors(weight)
        self._age = torch.zeros(vectors.numel() // vectors.shape[-1], dtype=torch.int64)
        self._before = self._age

    def age(self) -> None:
        """Add one interval to the age of unused codewords, and reset that of used ones."""
        weight = self._weight
        usage = slot_usage(weight, codes_of(weight))
        used = vector_usage(usage, _index(weight), len(self._age))
        self._age = aged(self._age, used.cpu(), self._interval)

    def replace_dead(self, objective: Objective, progress: float) -> Replacement:
        """Offer subvectors to the reservoir, and replace dead codewords by drawn ones.

        Args:
            objective: output error that the codes minimise.
            progress: share of the training that is done.
        """
        weight, vectors, codes = self._weight, _vectors(self._weight), codes_of(self._weight)
        self._offer(objective, codes)
        self._before = self._age
        replacement = replace_dead(
            vectors.detach(),
            _index(weight),
            slot_usage(weight, codes),
            self._age.to(vectors.device),
            self._reservoir,
            groups_per_codebook=weight.partition.groups_per_codebook,
            progress=progress,
            rule=DeadRule(after=self._after),
        )
        self._age = replacement.age.cpu()
        with torch.no_grad():
            vectors.copy_(replacement.vectors)
        if replacement.index is not None:
            packed = pack(replacement.index, weight.partition.index_bits)
            weight.get_buffer("index_map").copy_(packed)
        return replacement

    def undo(self) -> None:
        """Restore the ages before the last ``replace_dead``, which the caller has taken back."""
        self._age = self._before

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a resumed run needs."""
        return {"age": self._age, **self._reservoir.state()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        plain = {name: value.cpu() for name, value in tensors.items()}
        self._age = plain.pop("age")
        self._reservoir = Reservoir.from_state(plain)

    def _offer(self, objective: Objective, codes: Tensor) -> None:
        """Offer a random sample of subvectors, each with its own output error as priority."""
        p = self._weight.partition
        books = self._weight.books().detach()
        count = min(p.groups * p.points, max(AT_LEAST, int(SHARE * p.groups * p.points)))
        draw = torch.randint(p.groups * p.points, (count,), generator=self._reservoir.generator())
        group, point = (draw // p.points).to(books.device), (draw % p.points).to(books.device)
        stage = torch.arange(p.stages, device=books.device)[:, None]
        codewords = books[
            stage * p.codebooks + group // p.groups_per_codebook,
            codes[stage * p.groups + group, point].long(),
        ]  # [S, n, d]
        core = p.to_subvectors(objective.core)[group, :, point]  # [n, d]
        left, order = core - codewords.sum(0), objective.hessian.order
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
        targets = left + codewords
        self._reservoir.push(targets.flatten(0, 1), number.flatten(), priority.repeat(p.stages))


def codes_of(weight: PQWeight) -> Tensor:
    """The codes of a weight, int32 ``[S*G, P]``."""
    p = weight.partition
    return unpack(weight.codes, p.code_bits, p.points)


def slot_usage(weight: PQWeight, codes: Tensor) -> Tensor:
    """The number of subvectors that use each slot, int64 ``[S*B, K]``."""
    p = weight.partition
    line = torch.arange(len(codes), device=codes.device)
    book = line // p.groups * p.codebooks + line % p.groups // p.groups_per_codebook
    slots = p.stages * p.codebooks * p.K
    count = torch.bincount((codes + book[:, None] * p.K).view(-1), minlength=slots)
    return count.view(-1, p.K)


def vectors_name(weight: PQWeight) -> str:
    """Name of the parameter that holds the codewords: the pool where there is one."""
    return "pool" if weight.partition.pool else "codebooks"


def _vectors(weight: PQWeight) -> Tensor:
    return weight.parts()[vectors_name(weight)]


def _index(weight: PQWeight) -> Tensor | None:
    p = weight.partition
    return unpack(weight.get_buffer("index_map"), p.index_bits, p.K) if p.pool else None
