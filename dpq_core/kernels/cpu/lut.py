"""Product with a quantized weight by look-up tables, for few tokens (docs/algorithms.md#lut).

``y[r] = sum_j table[j, codes[j, r]]`` with ``table[j, k] = <x_j, c_k>``: K inner products per group
and token instead of one per row. Parallel over blocks of OUTPUT rows, so that no two threads ever
add to the same output (the race of the published PQ CPU kernel, AQLM issue 86).

Codes of 8 bits are looked up in vector registers where the processor can (``lut_jit``), with tables
in fixed point; else, and for codes of 16 bits, by a loop over float32 tables.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numba
import numpy as np
import torch
from numba.core import codegen, config
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.grouping import Grouping
from dpq_core.kernels.cpu import lut_jit, lut_tables_jit
from dpq_core.kernels.cpu.scratch import array
from dpq_core.kernels.cpu.threads import spread

_ROW_BLOCK = 512
"""Rows of one task of the loop: their float32 sums stay in the L1 cache."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to look up codes of 8 bits.

    Attributes:
        name: ``avx512vbmi``, ``avx2`` or ``portable``.
        features: features that the processor must have, as LLVM names them.
        lanes: rows of one vector; 0 for the loop.
        speed: codes that one step of a core looks up, for sharing out work.
        tokens: tokens up to which it is faster than decoding (benchmarks/suites/runtime.py).
    """

    name: str
    features: tuple[str, ...]
    lanes: int
    speed: int
    tokens: int


VARIANTS = (
    Variant(
        name="avx512vbmi",
        features=("avx512f", "avx512bw", "avx512vbmi"),
        lanes=64,
        speed=16,
        tokens=16,
    ),
    Variant(name="avx2", features=("avx2",), lanes=32, speed=2, tokens=6),
    Variant(name="portable", features=(), lanes=0, speed=1, tokens=4),
)
"""All variants, the best one first."""


@functools.cache
def features() -> frozenset[str]:
    """Features of the processor that compiled code may use.

    They can be masked by numba's environment variable ``NUMBA_CPU_FEATURES``.
    """
    text = config.CPU_FEATURES  # type: ignore[attr-defined]  # set from the environment
    text = codegen.get_host_cpu_features() if text is None else text  # type: ignore[no-untyped-call]
    return frozenset(name[1:] for name in text.split(",") if name.startswith("+"))


def usable() -> tuple[Variant, ...]:
    """The variants that this processor can run, the best one first."""
    return tuple(each for each in VARIANTS if features().issuperset(each.features))


def explain() -> str:
    """One line: which variant is used, and what the better ones lack."""
    best = usable()[0]
    lacks = [
        f"no {', '.join(sorted(set(each.features) - features()))} for {each.name}"
        for each in VARIANTS[: VARIANTS.index(best)]
    ]
    return "; ".join([best.name, *lacks])


def multiply(
    x: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    grouping: Grouping,
    *,
    precise: bool = True,
    variant: Variant | None = None,
) -> Tensor:
    """Product of activations and a core that is cut along its columns, by look-up tables.

    Args:
        x: inputs of the core, float32 ``[tokens, C]``.
        codebooks: float32 ``[S*B, K, d]``.
        codes: uint8 or uint16 ``[S*G, R]``, every code below K.
        grouping: how the core is cut.
        precise: tables of 24 bits, with which the result is as exact as in float32; otherwise 16
            bits, whose relative error of some 1e-4 disappears in results of 16 bits.
        variant: one of ``usable``; None for the best one.

    Returns:
        Float32 ``[tokens, R]``.

    Raises:
        SpecError: the processor cannot run the variant, or it takes no codes of 16 bits.
    """
    if variant is None:
        variant = usable()[0] if codes.dtype == torch.uint8 else VARIANTS[-1]
    if variant not in usable() or (variant.lanes and codes.dtype != torch.uint8):
        raise SpecError(f"look-ups by {variant.name} cannot be used here")
    if variant.lanes == 0:
        return _sum_by_code(_float_tables(x, codebooks, grouping), codes)
    return _sum_in_registers(x, codebooks, codes, grouping, 3 if precise else 2, variant)


def _sum_in_registers(
    x: Tensor, codebooks: Tensor, codes: Tensor, grouping: Grouping, planes: int, variant: Variant
) -> Tensor:
    """See ``multiply``: the product by fixed-point tables of ``planes`` bytes."""
    (groups, rows), tokens, (books, _, d) = codes.shape, len(x), codebooks.shape
    blocks = -(-groups // lut_tables_jit.BLOCK)
    turned = array("turned", (books, d, lut_tables_jit.ENTRIES), np.float32)
    largest = np.empty((books, d), np.float32)
    lut_tables_jit.transpose_books(codebooks.numpy(), turned, largest)
    tables = array("tables", (tokens, groups, planes * lut_tables_jit.ENTRIES), np.uint8)
    scales = np.empty((tokens, blocks), np.float32)
    book_and_inputs = sources(
        grouping.stages, grouping.groups, grouping.groups_per_codebook, grouping.codebooks, d
    )
    arrays = (
        x.contiguous().numpy(),
        turned,
        largest,
        book_and_inputs,
        tables,
        scales,
        (0,) * planes,
    )
    spread(
        lambda first, last: lut_tables_jit.tabulate(*arrays, first, last),
        tokens * blocks,
        tokens * groups * d * 16,
    )
    lanes, vectors = variant.lanes, VECTORS[variant.lanes, planes]
    wide = lut_jit.sizes(lanes, vectors, planes)
    narrow = lut_jit.sizes(lanes, 1, planes)
    width = -(-rows // lanes) * lanes
    out = np.empty((tokens, width), np.float32)
    step = lanes * vectors
    packed = codes.numpy()
    spread(
        lambda first, last: lut_jit.add_up(
            packed, tables, scales, out, wide, narrow, first * step, min(last * step, width)
        ),
        -(-width // step),
        tokens * codes.numel() // variant.speed,
    )
    return torch.from_numpy(out)[:, :rows]


VECTORS = {(64, 2): 4, (64, 3): 2, (32, 2): 2, (32, 3): 1}
"""Vectors of a tile by lanes and planes: as many as their sums and tables fit in registers."""


@functools.lru_cache(maxsize=1024)
def sources(
    stages: int, groups: int, groups_per_codebook: int, codebooks: int, d: int
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Codebook, and first coordinate of the inputs, of each row of codes: int64 ``[S*G, 2]``."""
    group = np.tile(np.arange(groups), stages)
    stage = np.repeat(np.arange(stages), groups)
    books = stage * codebooks + group // groups_per_codebook
    return np.ascontiguousarray(np.stack([books, group * d], axis=1).astype(np.int64))


def _float_tables(x: Tensor, codebooks: Tensor, grouping: Grouping) -> Tensor:
    """Inner products of subvectors of inputs with all codewords: float32 ``[tokens, S*G, K]``."""
    g, K = grouping, codebooks.shape[1]
    padded = x.new_zeros(len(x), g.codebooks * g.groups_per_codebook, g.d)
    padded.view(len(x), -1)[:, : g.cols] = x
    by_codebook = padded.view(len(x), g.codebooks, g.groups_per_codebook, g.d)
    of_stages = codebooks.view(g.stages, g.codebooks, K, g.d)
    table = torch.einsum("tcgd,sckd->tscgk", by_codebook, of_stages)
    return table.reshape(len(x), g.stages, -1, K)[:, :, : g.groups].reshape(len(x), -1, K)


@numba.njit(cache=True, fastmath=True, nogil=True)
def _sum(table, codes, out, first_task, last_task):  # type: ignore[no-untyped-def]
    """Write the sums of tasks first..last; a task is ``_ROW_BLOCK`` rows of one token."""
    groups, rows = codes.shape
    blocks = (rows + _ROW_BLOCK - 1) // _ROW_BLOCK
    for task in range(first_task, last_task):
        token, first = task // blocks, (task % blocks) * _ROW_BLOCK
        count = min(_ROW_BLOCK, rows - first)
        total = np.zeros(_ROW_BLOCK, np.float32)
        for group in range(groups):
            products = table[token, group]
            code = codes[group, first : first + count]
            for r in range(count):
                total[r] += products[code[r]]
        out[token, first : first + count] = total[:count]


def _sum_by_code(table: Tensor, codes: Tensor) -> Tensor:
    """Sum table entries by code: ``out[t, r] = sum_j table[t, j, codes[j, r]]``.

    Args:
        table: float32 ``[tokens, groups, K]``.
        codes: uint8 or uint16 ``[groups, R]``, every code below K.

    Returns:
        Float32 ``[tokens, R]``.
    """
    tokens, rows = len(table), codes.shape[1]
    out = np.empty((tokens, rows), np.float32)
    arrays = (table.contiguous().numpy(), codes.numpy(), out)
    tasks = tokens * -(-rows // _ROW_BLOCK)
    spread(lambda first, last: _sum(*arrays, first, last), tasks, tokens * codes.numel())
    return torch.from_numpy(out)
