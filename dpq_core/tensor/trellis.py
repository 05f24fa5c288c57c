"""Trellis codes: codewords selected by windows of code bits that overlap.

See docs/algorithms.md#trellis.

A code of b bits alone could name 2^b codewords. Here it names one of K = 2^L together with the
L - b bits before it: codeword i of a group is the one whose index is the window of the last L bits
of the group's bit stream at that point (QTIP, arXiv 2406.11235). Each group has a rate b of its
own, and the codebook of that rate, which is the same for all tensors: made once for normally
distributed subvectors, and shipped with dpq.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dpq_core import trellis_books
from dpq_core.errors import ArtifactError
from dpq_core.tensor.packing import pack, unpack
from dpq_core.trellis_books import MAX_RATE, RESTART

WEIGHTS_PER_OUTLIER = 4096
"""Weights per outlier: a weight too large for the codebooks is stored apart, in 6 bytes."""

_RATE_BITS = 4
"""Stored bits of a group's rate."""


def rates_of(packed: Tensor, groups: int) -> Tensor:
    """Unpack the stored rates of all groups: int64 ``[G]``."""
    return unpack(packed[None], _RATE_BITS, groups)[0].long()


def pack_rates(rates: Tensor) -> Tensor:
    """Rates ``[G]`` as they are stored, uint8 ``[ceil(G / 2)]``."""
    return pack(rates[None], _RATE_BITS)[0]


def rate_bytes(groups: int) -> int:
    """Bytes of the stored rates of all groups."""
    return -(-groups * _RATE_BITS // 8)


def outlier_count(rows: int, cols: int) -> int:
    """Number of outliers of a matrix: weights that are stored apart."""
    return -(-rows * cols // WEIGHTS_PER_OUTLIER)


def add_outliers(rows: Tensor, first: int, parts: Mapping[str, Tensor]) -> None:
    """Add the outliers to some rows of a core ``[n, C]`` that begin with row ``first``, in place.

    Args:
        rows: rows of the core, before any scale.
        first: index of the first of them.
        parts: stored parts by name; ``outliers`` are indices into the flattened core, ascending.
    """
    cols, places = rows.shape[1], parts["outliers"]
    begin, end = first * cols, (first + len(rows)) * cols
    inside = (places >= begin) & (places < end)
    place = places[inside].long() - begin
    values = parts["outlier_values"][inside].to(rows.dtype)
    rows.index_put_((place // cols, place % cols), values, accumulate=True)


def add_outliers_at(rows: Tensor, index: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """Rows ``[n, C]`` of a core at int64 ``[n]``, with the outliers of those rows added."""
    cols, places = rows.shape[1], parts["outliers"].long()
    begin = torch.searchsorted(places, index * cols)
    count = torch.searchsorted(places, (index + 1) * cols) - begin
    row = torch.repeat_interleave(torch.arange(len(index), device=index.device), count)
    nth = torch.arange(len(row), device=index.device) - (count.cumsum(0) - count)[row]
    outlier = begin[row] + nth
    values = parts["outlier_values"][outlier].to(rows.dtype)
    return rows.index_put((row, places[outlier] % cols), values, accumulate=True)


def check(parts: Mapping[str, Tensor], groups: int, row_bits: int, weights: int) -> None:
    """Check that rates of a tensor fit its bit streams, and outliers its size.

    Raises:
        ArtifactError: a rate is above ``MAX_RATE``, their sum is not ``row_bits``, or the outliers
            are not in ascending order within the ``weights`` of the tensor.
    """
    places = parts["outliers"].long()
    if bool((places.diff() <= 0).any()) or int(places[0]) < 0 or int(places[-1]) >= weights:
        raise ArtifactError(f"outliers are not in ascending order, each from 0 to {weights - 1}")
    rates = rates_of(parts["rates"], groups)
    if int(rates.max()) > MAX_RATE or int(rates.sum()) != row_bits:
        raise ArtifactError(
            f"rates go up to {int(rates.max())} and add up to {int(rates.sum())} bits, "
            f"expected at most {MAX_RATE} and {row_bits}"
        )


def pack_windows(windows: Tensor, rates: Tensor) -> Tensor:
    """Pack windows int32 ``[G, P]`` of a path through the trellis, as bit streams.

    Returns:
        uint8 ``[sum of rates, ceil(P / 8)]``: ``rates[j]`` rows hold the stream of group j, most
        significant bit first.
    """
    values, by_rate = windows.cpu().numpy(), rates.cpu().numpy()
    points = values.shape[1]
    runs: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    for row, rate in zip(values, by_rate, strict=True):
        code = row & ((1 << int(rate)) - 1)
        bits = ((code[:, None] >> np.arange(int(rate) - 1, -1, -1)) & 1).astype(np.uint8)
        run = np.zeros(trellis_books.group_bytes(points, int(rate)), np.uint8)
        packed = np.packbits(bits.reshape(-1))
        run[: len(packed)] = packed
        runs.append(run)
    return torch.from_numpy(np.concatenate(runs).reshape(-1, trellis_books.group_bytes(points, 1)))


def windows(codes: Tensor, rates: Tensor, points: int, K: int) -> Tensor:
    """Windows of some groups at all points.

    Args:
        codes: the bit streams of these groups, uint8 ``[sum of rates, ceil(P / 8)]``.
        rates: int64 ``[G]``.
        points: P.
        K: codewords of a codebook of a low rate, see ``trellis_books.size_of``.

    Returns:
        int32 ``[G, P]``.
    """
    eights, tiles = codes.shape[1], -(-points // RESTART)
    first = rates.cumsum(0) - rates
    result = torch.zeros(len(rates), points, dtype=torch.int32, device=codes.device)
    for rate in sorted(set(rates.tolist())):
        if rate == 0:
            continue
        size = trellis_books.size_of(rate, K)
        group = (rates == rate).nonzero()[:, 0]
        rows = first[group, None] + torch.arange(rate, device=codes.device)
        octets = codes[rows].view(len(group), eights, rate)  # each holds the codes of eight points
        code = torch.zeros(len(group), tiles * RESTART, dtype=torch.int32, device=codes.device)
        code[:, : 8 * eights] = _eight_codes(octets).view(len(group), 8 * eights)
        code = code.view(len(group), tiles, RESTART)
        window = code.clone()
        for back in range(1, -(-(size.bit_length() - 1) // rate)):
            window[..., back:] |= code[..., :-back] << (rate * back)
        result[group] = (window & (size - 1)).view(len(group), -1)[:, :points]
    return result


def _eight_codes(octets: Tensor) -> Tensor:
    """The codes in bytes of eight points each: int32 ``[..., 8]`` from uint8 ``[..., rate]``."""
    rate = octets.shape[-1]
    middle = (rate + 1) // 2
    high, low = (torch.zeros_like(octets[..., 0], dtype=torch.int64) for _ in range(2))
    for byte in range(rate):  # at most 48 bits of each half
        half = high if byte < middle else low
        half <<= 8
        half |= octets[..., byte]
    if rate % 2:  # the middle byte is shared
        low |= (high & 15) << (4 * rate - 4)
        high >>= 4
    places = [(3 - i) * rate for i in range(4)]
    codes = [(value >> place) & ((1 << rate) - 1) for value in (high, low) for place in places]
    return torch.stack([code.int() for code in codes], dim=-1)


def windows_at(codes: Tensor, rates: Tensor, points: int, index: Tensor, K: int) -> Tensor:
    """Windows of all groups at some points.

    Args:
        codes: the bit streams, uint8 ``[sum of rates, ceil(P / 8)]``.
        rates: int64 ``[G]``.
        points: P.
        index: points, int64 ``[n]``.
        K: codewords of a codebook of a low rate, see ``trellis_books.size_of``.

    Returns:
        int64 ``[G, n]``.
    """
    flat, first = codes.reshape(-1), trellis_books.starts(rates, points)
    window = torch.zeros(len(rates), len(index), dtype=torch.int64, device=codes.device)
    if len(flat) == 0:
        return window
    rate = rates[:, None]
    size = torch.where(rate > trellis_books.LOW_RATES, trellis_books.HIGH * K, K)
    length = torch.where(rate > trellis_books.LOW_RATES, *_lengths(K))
    slowest = int(rates[rates > 0].min()) if bool((rates > 0).any()) else MAX_RATE
    for back in range(-(-max(_lengths(K)) // slowest)):
        at = (index - back)[None]
        inside = (rate > 0) & (index % RESTART >= back)[None] & (rate * back < length)
        bit = torch.where(inside, at * rate, 0)
        byte, last = first[:, None] + (bit >> 3), len(flat) - 1
        three = [flat[(byte + k).clamp(max=last)].long() << (16 - 8 * k) for k in range(3)]
        code = ((three[0] | three[1] | three[2]) >> (24 - (bit & 7) - rate)) & ((1 << rate) - 1)
        window |= torch.where(inside, code << (rate * back).clamp(max=16), 0)
    return window & (size - 1)


def _lengths(K: int) -> tuple[int, int]:
    """Bits of a window at high rates and at low ones."""
    return (trellis_books.HIGH * K).bit_length() - 1, K.bit_length() - 1
