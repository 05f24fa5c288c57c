"""Reservoir: a weighted sample of badly served subvectors over the steps of a calibration.

Dead codewords are replaced by subvectors that the codebook serves badly
(docs/algorithms.md#dead-codewords). Such subvectors are seen a few at a time; the reservoir keeps a
sample of all seen so far, in which the chance of each grows with its error.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dpq_core.errors import SpecError

CAPACITY = 4096
"""Default number of subvectors kept per tensor (docs/algorithms.md#dead-codewords)."""

_STATE = ("subvectors", "group", "priority", "key", "counters")


class Reservoir:
    """Weighted random sample without replacement of a stream of subvectors.

    Each subvector of priority q gets the key ``u^(1/q)``, u uniform, and the greatest keys stay
    (Efraimidis and Spirakis 2006); keys are kept as logarithms. Every event draws its random
    numbers from a generator seeded with seed + event number, so that a resumed run goes on exactly
    as it would have. Everything is kept on the CPU.

    Args:
        capacity: subvectors kept at most.
        seed: the only source of randomness.
    """

    def __init__(self, capacity: int = CAPACITY, *, seed: int) -> None:
        if capacity < 1:
            raise SpecError(f"a reservoir keeps at least 1 subvector, not {capacity}")
        self.capacity, self.seed = capacity, seed
        self.events = 0
        self._subvectors = torch.empty(0, 0)
        self._group = torch.empty(0, dtype=torch.int64)
        self._priority = torch.empty(0, dtype=torch.float64)
        self._key = torch.empty(0, dtype=torch.float64)

    def __len__(self) -> int:
        """The number of subvectors that are kept now."""
        return len(self._group)

    def generator(self) -> torch.Generator:
        """The generator of one event's random numbers; each call begins a new event."""
        self.events += 1
        return torch.Generator().manual_seed((self.seed + self.events) % 2**63)

    def push(self, subvectors: Tensor, group: Tensor, priority: Tensor) -> None:
        """Offer subvectors, on any device.

        Args:
            subvectors: [n, d], finite.
            group: integer [n], the group of each.
            priority: [n]; those of no positive, finite priority are passed over.

        Raises:
            SpecError: shapes do not fit each other or what is kept.
        """
        n = len(group)
        kept_d = self._subvectors.shape[1] if len(self) else subvectors.shape[-1]
        fits = subvectors.shape == (n, kept_d) and group.shape == priority.shape == (n,)
        if not fits:
            raise SpecError(
                f"a reservoir of d={kept_d} takes subvectors [n, {kept_d}], group [n] and "
                f"priority [n], not {list(subvectors.shape)}, {list(group.shape)} and "
                f"{list(priority.shape)}"
            )
        q = priority.detach().double().cpu()
        u = torch.rand(n, dtype=torch.float64, generator=self.generator())
        offered = (q > 0) & (q < torch.inf)
        q, key = q[offered], u.log()[offered] / q[offered]
        vectors = subvectors.detach().float().cpu()[offered]
        self._subvectors = torch.cat([self._subvectors.reshape(-1, kept_d), vectors])
        self._group = torch.cat([self._group, group.cpu().long()[offered]])
        self._priority = torch.cat([self._priority, q])
        self._key = torch.cat([self._key, key])
        if len(self) > self.capacity:
            self._keep(self._key.argsort(descending=True, stable=True)[: self.capacity])

    def draw(self, count: int, *, eligible: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take out up to ``count`` subvectors, each with a chance that grows with its priority.

        Args:
            count: how many at most.
            eligible: bool [G], the groups that may be drawn from; None for all.

        Returns:
            float32 [n, d] and int64 [n], the groups; in the order of the draw.
        """
        u = torch.rand(len(self), dtype=torch.float64, generator=self.generator())
        key = u.log() / self._priority
        order = key.argsort(descending=True, stable=True)
        if eligible is not None:
            order = order[eligible.cpu()[self._group[order]]]
        order = order[:count]
        drawn = self._subvectors[order], self._group[order]
        rest = torch.ones(len(self), dtype=torch.bool)
        rest[order] = False
        self._keep(rest)
        return drawn

    def state(self) -> dict[str, Tensor]:
        """Everything as plain tensors, for a checkpoint; ``from_state`` is the inverse."""
        return {
            "subvectors": self._subvectors,
            "group": self._group,
            "priority": self._priority,
            "key": self._key,
            "counters": torch.tensor([self.capacity, self.seed, self.events]),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Reservoir:
        """A reservoir that goes on where ``state()`` was taken.

        Raises:
            SpecError: a tensor is missing or unknown.
        """
        if sorted(state) != sorted(_STATE):
            raise SpecError(f"a reservoir's state is {', '.join(_STATE)}, not {sorted(state)}")
        capacity, seed, events = state["counters"].tolist()
        reservoir = cls(capacity, seed=seed)
        reservoir.events = events
        reservoir._subvectors, reservoir._group = state["subvectors"], state["group"]
        reservoir._priority, reservoir._key = state["priority"], state["key"]
        return reservoir

    def _keep(self, which: Tensor) -> None:
        self._subvectors, self._group = self._subvectors[which], self._group[which]
        self._priority, self._key = self._priority[which], self._key[which]
