"""The nested parts of a QuantSpec, and how the fields of specs are checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpq_core.errors import SpecError

INITS = ("auto", "random", "kmeans++")
DENSE = 3.0
"""Bits per weight from which on codewords lie so densely that noise as wide as the data disturbs
them, and random points leave the rims too thin. On weights, k-means++ without noise then lowers the
error by 90 % at 8 bits (d = 1), 5 to 13 % at 4 (d = 2) and 3 to 13 % at 3 (d = 4); below, by
nothing."""

POOLS = ("none", "greedy", "wkmeans")
ASSIGNMENTS = ("l2", "blockdiag", "icm", "ldlq", "ldlq+icm")
MAX_POOL = 65_536


@dataclass(frozen=True, kw_only=True)
class KMeansSpec:
    """How codebooks are learned (METHODS: SR-C k-means of PQF, section 3.3 of arXiv 2010.15703).

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
        raise_all(
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
        """With an open ``init`` chosen for subvectors of length ``d`` and K codewords."""
        if self.init != "auto":
            return self
        if math.log2(K) < DENSE * d:
            return dataclasses.replace(self, init="random")
        return dataclasses.replace(self, init="kmeans++", noise_power=0.0)


@dataclass(frozen=True, kw_only=True)
class PoolSpec:
    """Many codebooks stored as one pool of vectors and a map of indices.

    See docs/algorithms.md#pool, DPQ.

    Attributes:
        method: ``none`` stores the codebooks; ``greedy`` is the paper's reading (by usage, with the
            threshold ``tau``); ``wkmeans`` clusters the codewords, weighted by usage.
        size: vectors in the pool; 0 for the paper's rows * cols / (16 d^2), and no pool at all
            where it would not pay (docs/algorithms.md#bit-accounting).
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
        raise_all(
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
    """How codes are chosen once there are codebooks (docs/algorithms.md#assignment, #assign-ldlq).

    All but ``l2`` lower the error of the layer's output, for which they need statistics of its
    input; without statistics every input counts alike, and all methods are ``l2``.

    Attributes:
        method: ``l2`` (nearest), ``blockdiag`` (metric of the group), ``icm`` (coordinate descent),
            ``ldlq`` (error feedback), ``ldlq+icm``.
        sweeps: sweeps of coordinate descent.
        damping: added to the diagonal of H / mean(diag H).
        updates: closed-form updates of the codebooks, each with a sweep after it.
        beam: codes kept in mind by the search through additive codebooks.
    """

    method: str = "l2"
    sweeps: int = 2
    damping: float = 0.01
    updates: int = 1
    beam: int = 4

    def __post_init__(self) -> None:
        """Check every field and report all mistakes at once."""
        raise_all(
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


def known(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values, all of which must be fields of ``cls``; else SpecError."""
    names = [f.name for f in dataclasses.fields(cls)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise SpecError(f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(names)}")
    return dict(values)


def raise_all(where: str, checks: list[tuple[bool, str]]) -> None:
    """Raise SpecError with the messages of all checks that failed."""
    wrong = [message for ok, message in checks if not ok]
    if wrong:
        raise SpecError(f"{where}: " + "; ".join(wrong))


def is_int(value: object, low: int, high: int) -> bool:
    """Whether ``value`` is an int, not a bool, in low..high."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite int or float, not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def word(raw: str) -> bool | int | float | str:
    """A word of the command line as the value it spells."""
    if raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    for kind in (int, float):
        try:
            return kind(raw)
        except ValueError:
            continue
    return raw
