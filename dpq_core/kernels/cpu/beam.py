"""Beam search over additive codebooks: numba on the CPU, torch elsewhere.

One point after the other: every kept partial sum of codewords is extended by every codeword of the
next stage, and the best ``beam`` of them are kept. The codewords lie coordinate by coordinate, so
that the loop over them is a stream of vector multiplications (AQLM, arXiv 2401.06118, section 3.2,
searches the same way; docs/algorithms.md#beam-search).
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as pad_with

from dpq_core.kernels.cpu.threads import spread

_COORDINATES = 4
"""Coordinates per pass over the scores, which are read and written d / 4 times only."""

_RUN = 512
"""Points of one task, all of one group."""

_TILE = 16
"""Scores of a tile, of which only the lowest is read unless it is among the lowest of all."""

_INDEX = (1 << 32) - 1
"""Mask of the lower half of an entry: partial sum * K + codeword."""

_NOTHING = 0x7F800000 << 32
"""Lowest entry with an infinite score: an empty place."""

_TILE_FLOATS = 1 << 24
"""Scores that the torch path holds at a time, at most."""


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _score(residual, words, halves, scores):  # type: ignore[no-untyped-def]
    """Write ``|residual - c_k|^2 / 2`` to scores[k]."""
    half = np.float32(0)
    for i in range(len(residual)):
        half += residual[i] * residual[i]
    half *= np.float32(0.5)
    for k in range(len(scores)):
        scores[k] = half + halves[k]
    for i in range(0, words.shape[0], 4):
        r0, r1, r2, r3 = residual[i], residual[i + 1], residual[i + 2], residual[i + 3]
        for k in range(len(scores)):
            scores[k] -= (
                r0 * words[i, k]
                + r1 * words[i + 1, k]
                + r2 * words[i + 2, k]
                + r3 * words[i + 3, k]
            )


@numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _lowest(scores, low):  # type: ignore[no-untyped-def]
    """Write the lowest score of every tile to ``low`` (vectorised, hence no NaN)."""
    for t in range(len(low)):
        best = scores[t * _TILE]
        for k in range(t * _TILE + 1, (t + 1) * _TILE):
            best = min(best, scores[k])
        low[t] = best


@numba.njit(cache=True, nogil=True)
def _insert(best, entry):  # type: ignore[no-untyped-def]
    """Insert an entry into the sorted best entries, without a branch to mispredict."""
    for at in range(len(best) - 1, 0, -1):
        best[at] = min(best[at], max(best[at - 1], entry))
    best[0] = min(best[0], entry)


@numba.njit(cache=True, nogil=True)
def _select(scores, low, bars, best):  # type: ignore[no-untyped-def]
    """Write the entries of the lowest scores, sorted, to ``best`` int64 [beam].

    The beam-th lowest tile minimum bounds what can be among them, so few tiles are looked into. An
    entry is the bits of the score (not negative, so that its bits sort like itself) above its
    index: of equals, the first partial sum and codeword win.
    """
    bars[:] = np.inf
    for t in range(len(low)):
        if low[t] < bars[-1]:
            _insert(bars, low[t])
    bar = bars[-1]
    best[:] = _NOTHING
    for t in range(len(low)):
        if low[t] > bar:
            continue
        for k in range(t * _TILE, (t + 1) * _TILE):
            if scores[k] <= bar:
                score = max(scores[k], np.float32(0))
                entry = (np.int64(np.float32(score).view(np.int32)) << 32) | k
                if entry < best[-1]:
                    _insert(best, entry)


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _search(points, words, halves, book_of, beam, codes, first, last):  # type: ignore[no-untyped-def]
    """Search codes for tasks first..last; a task is ``_RUN`` points of one group.

    Args:
        points: float32 [G, d, P].
        words: float32 [S, B, D, K], D and K rounded up with zeros.
        halves: float32 [S, B, K], half the squared norms, infinite for codewords that are none.
        book_of: int64 [G], index into B.
        beam: partial sums kept.
        codes: int32 [keep, S, G, P], overwritten.
        first: first task.
        last: past-the-end task.
    """
    _, d, P = points.shape
    S, _, D, K = words.shape
    runs = (P + _RUN - 1) // _RUN
    scores, low = np.empty(beam * K, np.float32), np.empty(beam * K // _TILE, np.float32)
    bars, best = np.empty(beam, np.float32), np.empty(beam, np.int64)
    now, later = np.zeros((beam, D), np.float32), np.zeros((beam, D), np.float32)
    paths, new_paths = np.empty((beam, S), np.int32), np.empty((beam, S), np.int32)
    for task in range(first, last):
        g = task // runs
        book = book_of[g]
        start = task % runs * _RUN
        for p in range(start, min(start + _RUN, P)):
            for i in range(d):
                now[0, i] = points[g, i, p]
            count = 1
            for s in range(S):
                for b in range(count):
                    some = scores[b * K : (b + 1) * K]
                    _score(now[b], words[s, book], halves[s, book], some)
                size = count * K // _TILE
                _lowest(scores, low[:size])
                _select(scores, low[:size], bars, best)
                count = 0
                while count < beam and best[count] < _NOTHING:
                    b, k = divmod(best[count] & _INDEX, K)
                    for i in range(d):
                        later[count, i] = now[b, i] - words[s, book, i, k]
                    for earlier in range(s):
                        new_paths[count, earlier] = paths[b, earlier]
                    new_paths[count, s] = k
                    count += 1
                now, later = later, now
                paths, new_paths = new_paths, paths
            for n in range(len(codes)):
                for s in range(S):
                    codes[n, s, g, p] = paths[n, s]


def search(points: Tensor, books: Tensor, book_of: Tensor, beam: int, keep: int = 1) -> Tensor:
    """Codes int32 [keep, S, G, P] whose codewords add up to about ``points``, nearest first.

    Args:
        points: float32 [G, d, P].
        books: float32 [S, B, K, d].
        book_of: int64 [G]: the row of ``books`` that a group uses.
        beam: partial sums kept after each stage; K^(S-1) of them make the search exact.
        keep: sums returned, at most ``beam`` and K^S.
    """
    if points.device.type != "cpu":
        return _by_torch(points, books, book_of, beam, keep)
    S, _, K, d = books.shape
    G, _, P = points.shape
    words = pad_with(books.movedim(2, 3), (0, -K % _TILE, 0, -d % _COORDINATES)).contiguous()
    halves = pad_with(books.square().sum(3) / 2, (0, -K % _TILE), value=torch.inf).contiguous()
    codes = torch.empty(keep, S, G, P, dtype=torch.int32)
    beam = max(keep, min(beam, K ** (S - 1)))
    arrays = (points.contiguous().numpy(), words.numpy(), halves.numpy(), book_of.numpy())
    inputs = (*arrays, beam, codes.numpy())
    steps = G * P * K * S * beam
    spread(lambda first, last: _search(*inputs, first, last), G * -(-P // _RUN), steps)
    return codes


def _by_torch(points: Tensor, books: Tensor, book_of: Tensor, beam: int, keep: int) -> Tensor:
    """See ``search``; in tiles of groups and points."""
    S, _, K, _ = books.shape
    G, _, P = points.shape
    codes = torch.empty(keep, S, G, P, dtype=torch.int32, device=points.device)
    run = min(P, max(1, _TILE_FLOATS // (beam * K)))
    some = max(1, _TILE_FLOATS // (beam * K * run))
    for first in range(0, G, some):
        group = slice(first, first + some)
        group_books = books[:, book_of[group]]  # [S, g, K, d]
        for start in range(0, P, run):
            block = points[group, :, start : start + run].movedim(1, 2)  # [g, n, d]
            codes[:, :, group, start : start + run] = _tile(block, group_books, beam, keep)
    return codes


def _tile(x: Tensor, books: Tensor, beam: int, keep: int) -> Tensor:
    """Codes int32 [keep, S, g, n] of points [g, n, d] with codebooks [S, g, K, d]."""
    g, n, d = x.shape
    K = books.shape[2]
    residual = x[:, :, None]  # [g, n, beams, d]
    paths = torch.empty(g, n, 1, 0, dtype=torch.int64, device=x.device)
    for words in books:
        beams = residual.shape[2]
        half = words.square().sum(2)[:, None] / 2
        flat = residual.reshape(g, n * beams, d)
        scores = torch.baddbmm(half, flat, words.movedim(1, 2), alpha=-1)
        scores = scores.view(g, n, beams, K) + residual.square().sum(3, keepdim=True) / 2
        best = scores.view(g, n, beams * K).topk(min(beam, beams * K), largest=False).indices
        source, code = best // K, best % K  # [g, n, kept]
        codewords = words.gather(1, code.view(g, -1, 1).expand(-1, -1, d)).view(g, n, -1, d)
        kept = residual.gather(2, source[..., None].expand(-1, -1, -1, d))
        residual = kept - codewords
        history = paths.gather(2, source[..., None].expand(-1, -1, -1, paths.shape[3]))
        paths = torch.cat([history, code[..., None]], dim=3)
    return paths[:, :, :keep].permute(2, 3, 0, 1).to(torch.int32)
