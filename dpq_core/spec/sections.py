"""The nested sections of a QuantSpec, and the checks of the fields of specs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpq_core.errors import SpecError

INITS = ("auto", "random", "kmeans++")
MIN_PLUSPLUS_BITS = 3.0
"""Bits per weight from which on k-means starts with k-means++ and adds no noise.

Codewords then lie so densely that noise as wide as the data disturbs them, and random points leave
the rims too thin. On weights, k-means++ without noise then lowers the error by 90 % at 8 bits
(d = 1), 5 to 13 % at 4 (d = 2) and 3 to 13 % at 3 (d = 4); below, by nothing.
"""

POOLS = ("none", "greedy", "wkmeans")
ASSIGNMENTS = ("l2", "blockdiag", "icm", "ldlq", "ldlq+icm")
MAX_POOL = 65_536
"""Vectors of a pool at most: an entry of an index map is an unsigned 16-bit number at most."""


@dataclass(frozen=True, kw_only=True)
class KMeansSpec:
    """How codebooks are learned: SR-C k-means (PQF, arXiv 2010.15703, section 3.3).

    Attributes:
        iterations: number of Lloyd iterations with stochastic relaxation (noise in the update).
        tail: noiseless Lloyd iterations after them.
        noise_power: p of the noise schedule (1 - i/I)^p; 0 switches the noise off (plain k-means).
        init: ``random`` (distinct data points), ``kmeans++``, or ``auto``: from 3 bits per weight
            on k-means++ and no noise, else random.
    """

    iterations: int = 20
    tail: int = 2
    noise_power: float = 0.5
    init: str = "auto"

    def __post_init__(self) -> None:
        """Check every field and report all mistakes at once."""
        raise_failed_checks(
            "kmeans",
            [
                (is_int(self.iterations, 0, 100_000), "iterations must be 0..100000"),
                (is_int(self.tail, 0, 100_000), "tail must be 0..100000"),
                (
                    is_number(self.noise_power) and 0 <= self.noise_power <= 16,
                    "noise_power must be 0..16",
                ),
                (self.init in INITS, f"init must be one of {', '.join(INITS)}"),
            ],
        )

    def resolved(self, d: int, K: int) -> KMeansSpec:
        """The spec with ``init=auto`` replaced by what suits codebooks ``[K, d]``."""
        if self.init != "auto":
            return self
        if math.log2(K) < MIN_PLUSPLUS_BITS * d:
            return dataclasses.replace(self, init="random")
        return dataclasses.replace(self, init="kmeans++", noise_power=0.0)


@dataclass(frozen=True, kw_only=True)
class PoolSpec:
    """How codebooks are stored as one pool of vectors and a map of indices.

    See docs/algorithms.md#pool (DPQ, arXiv 2411.12306).

    Attributes:
        method: ``none`` stores the codebooks; ``greedy`` takes the most used codewords that are
            farther than ``tau`` apart, as the paper does; ``wkmeans`` clusters the codewords,
            weighted by usage.
        size: V, vectors of the pool; 0 for the paper's R C / (16 d^2), and no pool where it would
            not pay (docs/algorithms.md#pool-size, #bit-accounting).
        tau: for ``greedy``: codewords nearer than this, in RMS norms, are one.
        refine: rounds of assigning anew and averaging after the pool is built.
        packed: indices take ceil(log2 size) bits; otherwise 16.
    """

    method: str = "none"
    size: int = 0
    tau: float = 0.05
    refine: int = 6
    packed: bool = True

    def __post_init__(self) -> None:
        """Check every field and report all mistakes at once."""
        raise_failed_checks(
            "pool",
            [
                (self.method in POOLS, f"method must be one of {', '.join(POOLS)}"),
                (is_int(self.size, 0, MAX_POOL), f"size must be 0..{MAX_POOL}"),
                (is_number(self.tau) and 0 <= self.tau <= 16, "tau must be 0..16"),
                (is_int(self.refine, 0, 1000), "refine must be 0..1000"),
                (isinstance(self.packed, bool), "packed must be true or false"),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class AssignmentSpec:
    """How codes are chosen for given codebooks (docs/algorithms.md#assignment).

    All but ``l2`` lower the error of the layer's output, for which they need statistics of its
    input; without statistics every input counts alike, and all methods are ``l2``.

    Attributes:
        method: ``l2`` (nearest), ``blockdiag`` (metric of the group), ``icm`` (coordinate descent),
            ``ldlq`` (error feedback), ``ldlq+icm``.
        sweeps: sweeps of coordinate descent.
        damping: added to the diagonal of H / mean(diag H).
        updates: closed-form updates of the codebooks, each with a sweep after it.
        beam: partial sums that the search through additive codebooks keeps.
    """

    method: str = "l2"
    sweeps: int = 2
    damping: float = 0.01
    updates: int = 1
    beam: int = 4

    def __post_init__(self) -> None:
        """Check every field and report all mistakes at once."""
        raise_failed_checks(
            "assignment",
            [
                (self.method in ASSIGNMENTS, f"method must be one of {', '.join(ASSIGNMENTS)}"),
                (is_int(self.sweeps, 0, 1000), "sweeps must be 0..1000"),
                (
                    is_number(self.damping) and 0 < self.damping <= 1e3,
                    "damping must be in (0, 1000]",
                ),
                (is_int(self.updates, 0, 1000), "updates must be 0..1000"),
                (is_int(self.beam, 1, 1024), "beam must be 1..1024"),
            ],
        )


def require_fields(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values as a dict, all of whose keys are fields of a dataclass.

    Args:
        cls: the dataclass.
        values: by the name of a field.
        where: beginning of the message.

    Raises:
        SpecError: a key is no field.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise SpecError(f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(names)}")
    return dict(values)


def raise_failed_checks(where: str, checks: list[tuple[bool, str]]) -> None:
    """Raise SpecError with the messages of all checks that failed."""
    messages = [message for passed, message in checks if not passed]
    if messages:
        raise SpecError(f"{where}: " + "; ".join(messages))


def is_int(value: object, low: int, high: int) -> bool:
    """Whether ``value`` is an int, not a bool, in low..high."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite int or float, not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parse_value(raw: str) -> bool | int | float | str:
    """The bool, int or float that a text spells; else the text."""
    if raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    for number in (int, float):
        try:
            return number(raw)
        except ValueError:
            continue
    return raw
