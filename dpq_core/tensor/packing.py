"""Bit packing of codes, little-endian, with one byte-aligned run per group (FORMAT.md)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1 << 20
"""Codes packed at a time, so that the bit matrix never exceeds a few megabytes."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack integer codes ``[G, P]`` to uint8 ``[G, ceil(P * bits / 8)]``.

    Code i of a group occupies the bits ``i*bits .. (i+1)*bits`` of the group's run, least
    significant bit first. Unused bits at the end of a run are zero.
    """
    if bits == 8:
        return codes.to(torch.uint8)
    values = codes.cpu().numpy()
    if bits == 16:
        return torch.from_numpy(values.astype("<u2").view(np.uint8))
    groups, points = values.shape
    out = np.zeros((groups, -(-points * bits // 8)), np.uint8)
    step = max(8, _BLOCK // max(groups, 1) // 8 * 8)  # a multiple of 8 codes ends on a byte
    shifts = np.arange(bits, dtype=np.uint32)
    for start in range(0, points, step):
        block = values[:, start : start + step].astype(np.uint32)
        bit_matrix = ((block[:, :, None] >> shifts) & 1).astype(np.uint8)
        packed = np.packbits(bit_matrix.reshape(groups, -1), axis=1, bitorder="little")
        first = start * bits // 8
        out[:, first : first + packed.shape[1]] = packed
    return torch.from_numpy(out)


def unpack(packed: Tensor, bits: int, points: int) -> Tensor:
    """Unpack uint8 ``[G, bytes]`` to int32 codes ``[G, P]``: the inverse of ``pack``."""
    if bits == 8:
        return packed.to(torch.int32)
    if bits == 16:
        low, high = packed[:, 0::2].to(torch.int32), packed[:, 1::2].to(torch.int32)
        return low | (high << 8)
    position = torch.arange(points, device=packed.device, dtype=torch.int64) * bits
    byte, shift = position >> 3, (position & 7).to(torch.int32)
    last = packed.shape[1] - 1
    word = torch.zeros(packed.shape[0], points, dtype=torch.int32, device=packed.device)
    for k in range((bits + 14) // 8):  # a code of b bits touches at most ceil((b+7)/8) bytes
        part = packed[:, (byte + k).clamp(max=last)].to(torch.int32)
        word |= torch.where(byte + k <= last, part, 0) << (8 * k)
    return (word >> shift) & ((1 << bits) - 1)


class UnpackedCache:
    """A cache of the unpacked parts of one tensor, valid for as long as the parts stay the same."""

    def __init__(self) -> None:
        """An empty cache."""
        self._entries: dict[str, tuple[Tensor, int, Tensor]] = {}

    def get(self, name: str, packed: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """The result of ``make(packed)``, computed once for as long as ``packed`` is unchanged."""
        if torch.compiler.is_compiling():
            return make(packed)  # a trace sees no values, so there is nothing to keep
        version = 0 if packed.is_inference() else packed._version
        entry = self._entries.get(name)
        if entry is None or entry[0] is not packed or entry[1] != version:
            entry = self._entries[name] = (packed, version, make(packed))
        return entry[2]
