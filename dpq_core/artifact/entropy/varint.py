"""Integers as bytes in LEB128, signed ones in zigzag order; bounded on reading."""

from __future__ import annotations

from collections.abc import Iterable

from dpq_core.errors import ArtifactError

MAX_BITS = 63


def pack(values: Iterable[int]) -> bytes:
    """Pack non-negative integers below 2^63: seven bits per byte, least significant first."""
    out = bytearray()
    for value in values:
        rest = int(value)
        while rest > 127:
            out.append(rest & 127 | 128)
            rest >>= 7
        out.append(rest)
    return bytes(out)


def pack_signed(values: Iterable[int]) -> bytes:
    """Pack integers of either sign: 0, -1, 1, -2, ... are stored as 0, 1, 2, 3, ..."""
    return pack(2 * int(v) if v >= 0 else -2 * int(v) - 1 for v in values)


class Reader:
    """Reads integers and bytes from the front of an untrusted buffer."""

    def __init__(self, data: bytes | memoryview, where: str) -> None:
        """Read ``data``; ``where`` begins every error message."""
        self._data = data
        self._at = 0
        self._where = where

    def take(self, limit: int = 2**MAX_BITS - 1) -> int:
        """The next integer, 0..limit.

        Raises:
            ArtifactError: the data end, or the number is too large.
        """
        value = shift = 0
        while True:
            if self._at >= len(self._data):
                raise ArtifactError(f"{self._where}: truncated")
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 127) << shift
            shift += 7
            if value > limit or shift > 70:
                raise ArtifactError(f"{self._where}: a number is over the limit {limit}")
            if byte < 128:
                return value

    def take_signed(self, limit: int) -> int:
        """The next integer of ``pack_signed``, -limit..limit.

        Raises:
            ArtifactError: the data end, or the number is out of range.
        """
        value = self.take(2 * limit)
        return -((value + 1) >> 1) if value & 1 else value >> 1

    def take_bytes(self, count: int) -> bytes:
        """The next ``count`` bytes.

        Raises:
            ArtifactError: there are fewer.
        """
        if count > len(self._data) - self._at:
            raise ArtifactError(f"{self._where}: truncated")
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    def rest(self) -> bytes:
        """The next bytes to the end of the buffer."""
        return self.take_bytes(len(self._data) - self._at)

    def finish(self) -> None:
        """Check that everything was taken.

        Raises:
            ArtifactError: bytes are left over.
        """
        if self._at != len(self._data):
            raise ArtifactError(f"{self._where}: {len(self._data) - self._at} bytes are left over")
