"""One token of a llama-shaped decoder, compiled: all threads of a team run it side by side.

Threads compute small things (norms) each for itself, share products by rows and attention by heads,
and meet where one needs what another wrote.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np

from dpq_core.kernels.cpu.teamwork import meet
from dpq_llama.compiled.products import COLS, ROWS, TILE, multiply, prepare, row
from dpq_llama.compiled.sampling import choose

SILU, GELU, GELU_TANH = range(3)
"""Activations of the MLP."""


class Shape(NamedTuple):
    """Sizes of a decoder."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    activation: int
    qk_norms: bool
    eps: float
    rope_scale: float


class Work(NamedTuple):
    """Constants of kernels, and memory that all threads share.

    Attributes:
        books: codebooks of trellis codes by rate, float32 ``[13, 4 K, 2]``.
        sizes: see ``trellis_jit.sizes_of``.
        wide: see ``lut_jit.sizes``.
        narrow: as ``wide``, of one vector.
        planes: a tuple of as many entries as a table has planes.
        tables: uint8 ``[3, n]``: tables of products that share their inputs.
        scales: float32 ``[3, blocks]``.
        outputs: float32 ``[3, 1, n]``: their outputs.
        logits: float32 ``[1, 1, V or more]``.
        mixed: float32 ``[heads * head_dim]``: output of the attention.
        counters: int64 ``[16]``, see ``teamwork.meet``.
    """

    books: Any
    sizes: Any
    wide: Any
    narrow: Any
    planes: Any
    tables: Any
    scales: Any
    outputs: Any
    logits: Any
    mixed: Any
    counters: Any


_jit = numba.njit(cache=True, nogil=True, error_model="numpy")
_fast = numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}
)


@_fast
def _normalize(x, weight, eps, out):  # type: ignore[no-untyped-def]
    """Write the RMS norm of ``x`` to ``out``, all float32 ``[n]``."""
    total = np.float32(0)
    for c in range(len(x)):
        total += x[c] * x[c]
    factor = np.float32(1 / np.sqrt(total / len(x) + eps))
    for c in range(len(x)):
        out[c] = weight[c] * (x[c] * factor)


@_jit
def _rotate(head, turns):  # type: ignore[no-untyped-def]
    """Rotate one head ``[head_dim]`` by cosines and sines ``[2, head_dim / 2]``, all float32."""
    half = len(head) // 2
    for i in range(half):
        a, b = head[i], head[i + half]
        head[i] = a * turns[0, i] - b * turns[1, i]
        head[i + half] = b * turns[0, i] + a * turns[1, i]


@_fast
def _attend(query, keys, values, scores, out):  # type: ignore[no-untyped-def]
    """Write the attention of one head to ``out``.

    Args:
        query: float32 ``[head_dim]``.
        keys: float32 ``[n, head_dim]``.
        values: float32 ``[n, head_dim]``.
        scores: memory, float32 ``[n]``.
        out: float32 ``[head_dim]``.
    """
    scale = np.float32(1 / np.sqrt(len(query)))
    most = np.float32(-3.4e38)
    for n in range(len(keys)):
        total = np.float32(0)
        for i in range(len(query)):
            total += keys[n, i] * query[i]
        scores[n] = total * scale
        most = max(most, scores[n])
    total = np.float32(0)
    for n in range(len(keys)):
        scores[n] = np.exp(scores[n] - most)
        total += scores[n]
    out[:] = 0
    for n in range(len(keys)):
        share = scores[n] / total
        for i in range(len(query)):
            out[i] += share * values[n, i]


@_jit
def _activate(kind, x):  # type: ignore[no-untyped-def]
    """The activation function at ``x``."""
    if kind == SILU:
        return x / (np.float32(1) + np.exp(-x))
    if kind == GELU:
        return np.float32(0.5 * x * (1 + math.erf(x * 0.7071067811865476)))
    return np.float32(0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))))


@_jit
def _together(products, count, x, work, inputs, out, thread, threads):  # type: ignore[no-untyped-def]
    """Multiply ``x`` with some weights, and meet when all outputs ``out[n, 0]`` are written."""
    tabled = False
    for n in range(count):
        if prepare(products[n], n, x, work, inputs, thread, threads):
            tabled = True
    if tabled:
        meet(work.counters, threads)
    tiles = 0
    for n in range(count):
        tiles += (products[n, ROWS] + TILE - 1) // TILE
    first, last = thread * tiles // threads, (thread + 1) * tiles // threads
    for n in range(count):
        own = (products[n, ROWS] + TILE - 1) // TILE
        begin, end = max(first, 0), min(last, own)
        if begin < end:
            multiply(products[n], n, x, out[n], work, inputs, begin, end)
        first, last = first - own, last - own
    meet(work.counters, threads)


@_jit
def decode(  # type: ignore[no-untyped-def]
    token,
    shape,
    products,
    norms,
    head_norms,
    windows,
    frequencies,
    keys,
    values,
    length,
    work,
    drawing,
    thread,
    threads,
):
    """Feed one token and choose the next one.

    Args:
        token: its id.
        shape: sizes of the decoder.
        products: table of weights, int64 ``[2 + 7 * layers, FIELDS]``: embedding, head, then q, k,
            v, o, gate, up and down of every layer.
        norms: float32 ``[2 * layers + 1, hidden]``.
        head_norms: of queries and keys, float32 ``[layers, 2, head_dim]``.
        windows: int64 ``[layers]``: how many last tokens a layer sees.
        frequencies: of the rotary embedding, float32 ``[head_dim / 2]``.
        keys: float32 ``[layers, kv_heads, capacity, head_dim]``.
        values: of the same shape.
        length: tokens in the cache, below the capacity.
        work: see ``Work``.
        drawing: temperature, top_k, top_p and a uniform random number, float64 ``[4]``.
        thread: index of the thread.
        threads: size of the team.

    Returns:
        Id of the next token on thread 0, and 0 on the others. Logits are in ``work.logits``.
    """
    hidden = norms.shape[1]
    dim, half = shape.head_dim, shape.head_dim // 2
    outputs = work.outputs
    inputs = np.empty(outputs.shape[2], np.float32)
    x, normal = np.empty(hidden, np.float32), np.empty(hidden, np.float32)
    query, scores = np.empty(dim, np.float32), np.empty(length + 1, np.float32)
    mlp = np.empty(products[8, COLS], np.float32)
    turns = np.empty((2, half), np.float32)
    for i in range(half):
        angle = np.float32(length) * frequencies[i]
        turns[0, i] = np.float32(np.cos(angle)) * np.float32(shape.rope_scale)
        turns[1, i] = np.float32(np.sin(angle)) * np.float32(shape.rope_scale)
    row(products[0], token, x, work, inputs)
    for layer in range(shape.layers):
        own = products[2 + 7 * layer : 9 + 7 * layer]
        _normalize(x, norms[2 * layer], shape.eps, normal)
        _together(own, 3, normal, work, inputs, outputs, thread, threads)
        shared = shape.heads // shape.kv_heads
        first = max(0, length + 1 - windows[layer])
        for kv in range(thread, shape.kv_heads, threads):
            key = keys[layer, kv, length]
            key[:] = outputs[1, 0, kv * dim : (kv + 1) * dim]
            if shape.qk_norms:
                _normalize(key, head_norms[layer, 1], shape.eps, key)
            _rotate(key, turns)
            values[layer, kv, length] = outputs[2, 0, kv * dim : (kv + 1) * dim]
            for head in range(kv * shared, (kv + 1) * shared):
                query[:] = outputs[0, 0, head * dim : (head + 1) * dim]
                if shape.qk_norms:
                    _normalize(query, head_norms[layer, 0], shape.eps, query)
                _rotate(query, turns)
                _attend(
                    query,
                    keys[layer, kv, first : length + 1],
                    values[layer, kv, first : length + 1],
                    scores,
                    work.mixed[head * dim : (head + 1) * dim],
                )
        meet(work.counters, threads)
        _together(own[3:], 1, work.mixed, work, inputs, outputs, thread, threads)
        for c in range(hidden):
            x[c] += outputs[0, 0, c]
        _normalize(x, norms[2 * layer + 1], shape.eps, normal)
        meet(work.counters, threads)
        _together(own[4:], 2, normal, work, inputs, outputs, thread, threads)
        for c in range(len(mlp)):
            mlp[c] = _activate(shape.activation, outputs[0, 0, c]) * outputs[1, 0, c]
        meet(work.counters, threads)
        _together(own[6:], 1, mlp, work, inputs, outputs, thread, threads)
        for c in range(hidden):
            x[c] += outputs[0, 0, c]
        meet(work.counters, threads)
    _normalize(x, norms[2 * shape.layers], shape.eps, normal)
    _together(products[1:], 1, normal, work, inputs, work.logits, thread, threads)
    if thread > 0:
        return 0
    logits = work.logits[0, 0, : products[1, ROWS]]
    return choose(logits, drawing[0], int(drawing[1]), drawing[2], drawing[3])
