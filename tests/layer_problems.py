"""Small layers with correlated inputs, and slow float64 oracles of their output error."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from dpq_core.grouping import Grouping
from dpq_core.methods.assignment.hessian import MIN_DAMPING, Hessian
from dpq_core.methods.assignment.objective import Objective

layers = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 21),
        "cols": st.integers(1, 21),
        "d": st.integers(1, 5),
        "K": st.integers(1, 9),
        "sharing": st.integers(1, 4),
        "stages": st.integers(1, 2),
        "orientation": st.sampled_from(["input", "output"]),
        "rank": st.integers(0, 25),
        "damping": st.sampled_from([0.0, 1e-4, 1e-2, 1.0]),
        "weighted": st.booleans(),
        "seed": st.integers(0, 10_000),
    }
)
"""Keyword arguments of ``layer``: pads, low rank, dead columns and ties of every kind."""


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def second_moment(cols: int, rank: int, seed: int) -> Tensor:
    """Of ``rank``, with energies over four decades and, for small ranks, columns without data."""
    x = normal(rank, cols, seed=seed) * 10 ** torch.linspace(-2, 2, rank)[:, None]
    x[:, ::7] *= rank > cols // 2
    return x.T @ x / max(1, rank)


def layer(
    *,
    rows: int,
    cols: int,
    d: int,
    K: int,
    sharing: int = 1,
    stages: int = 1,
    orientation: str = "input",
    rank: int = 1000,
    damping: float = 0.01,
    weighted: bool = False,
    seed: int = 0,
) -> tuple[Objective, Tensor]:
    """An objective, and codebooks [S*B, K, d] that have nothing to do with it."""
    weights = normal(rows, seed=seed + 1).square() if weighted else None
    objective = objective_of(
        normal(rows, cols, seed=seed),
        second_moment(cols, rank, seed + 2),
        d=d,
        sharing=sharing,
        stages=stages,
        orientation=orientation,
        damping=damping,
        row_weight=weights,
    )
    books = objective.grouping.codebooks
    return objective, normal(stages * books, K, d, seed=seed + 3) / stages


def objective_of(
    core: Tensor,
    H: Tensor | Hessian,
    *,
    d: int,
    sharing: int = 1,
    stages: int = 1,
    orientation: str = "input",
    **choices: Any,
) -> Objective:
    """The objective of a core whose subvectors of length d run along one of its axes."""
    rows, cols = core.shape
    axis = cols if orientation == "input" else rows
    groups = -(-axis // d)
    grouping = Grouping(
        rows=rows,
        cols=cols,
        d=d,
        groups=groups,
        groups_per_codebook=sharing,
        stages=stages,
        pad=groups * d - axis,
    )
    return Objective.of(core, H, grouping, orientation=orientation, **choices)


def decode(objective: Objective, codes: Tensor, codebooks: Tensor) -> Tensor:
    """[rows, cols], one subvector after the other."""
    g = objective.grouping
    G, d, C, sharing = g.groups, g.d, g.codebooks, g.groups_per_codebook
    along = torch.zeros(G * d, g.points)
    for row in range(len(codes)):
        stage, group = divmod(row, G)
        for p in range(g.points):
            word = codebooks[stage * C + group // sharing, codes[row, p]]
            along[group * d : (group + 1) * d, p] += word
    along = along[: G * d - g.pad]
    return along.T if objective.orientation == "input" else along


def damped(H: Tensor, damping: float) -> Tensor:
    """H with its damping, float64, in its own units."""
    scale = float(H.diagonal().double().mean()) or 1.0
    eye = torch.eye(len(H), dtype=torch.float64)
    return H.double() + max(damping, MIN_DAMPING) * scale * eye


def output_error(core: Tensor, core_hat: Tensor, H: Tensor, weights: Tensor | None = None) -> float:
    """sum_r w_r e_r H e_r^T in float64."""
    wrong = (core - core_hat).double()
    by_row = torch.einsum("ri,ij,rj->r", wrong, H.double(), wrong)
    return float(by_row.sum() if weights is None else by_row @ weights.double())
