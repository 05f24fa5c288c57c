"""The ``models`` stream: axes or codebooks of the harmonics, and all context models."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dpq_core.artifact.entropy import stored, varint
from dpq_core.artifact.entropy.coding import MAX_LUT_BYTES, Model
from dpq_core.errors import ArtifactError
from dpq_gaussian.codec import codebooks
from dpq_gaussian.codec.harmonics import BASIS_SCALE
from dpq_gaussian.codec.layout import group_count, streams_of
from dpq_gaussian.codec.parameters import Parameters
from dpq_gaussian.policy import CLASSES

MAX_BYTES = 64 << 20
"""Of the stream when inflated."""

LUT_ROOM, LUT_RATIO = 16 << 20, 1024
"""Bytes of look-up tables that a stream may ask for: so many, and so many for each of its bytes.

Scenes of 40,000 Gaussians ask for 4 MB with streams of 16 to 100 kB.
"""


def sequences(parameters: Parameters) -> tuple[str, ...]:
    """The names of all sequences of a file, in the order of their models."""
    return tuple(name for names in streams_of(parameters).values() for name in names)


def axes_to_bytes(axes: npt.NDArray[np.int8]) -> bytes:
    """Principal axes ``[R, 3 M]``: their number, then their rows."""
    return varint.pack([len(axes)]) + axes.tobytes()


def pack(models: Mapping[str, Model], table: bytes) -> bytes:
    """The stream: axes or codebooks as bytes, then the models, deflated."""
    body = table + b"".join(stored.to_bytes(model) for model in models.values())
    return zlib.compress(body, 9)


def unpack(
    data: bytes | memoryview, parameters: Parameters, where: str
) -> tuple[dict[str, Model], npt.NDArray[np.float32]]:
    """The models by sequence, and principal axes ``[R, 3 M]`` or codebooks ``[C, K, d]``, float32.

    Raises:
        ArtifactError: damaged, too large, or a model does not fit its sequence.
    """
    inflater = zlib.decompressobj()
    try:
        body = inflater.decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise ArtifactError(f"{where}: cannot be inflated ({error})") from None
    if not inflater.eof or inflater.unused_data:
        raise ArtifactError(f"{where}: too large, or bytes follow its end")
    reader = varint.Reader(body, where)
    table, limits = _table(reader, parameters, where)
    models, spent, codes = {}, 0, 0
    for name in sequences(parameters):
        here = f"{where}: sequence {name!r}"
        model = stored.from_reader(reader, here)
        low, high = limits.get(name, (model.low, model.high))
        if model.low < low or model.high > high:
            raise ArtifactError(f"{here}: its symbols are not all in {low}..{high}")
        if len(model.scale) != group_count(name):
            raise ArtifactError(f"{here}: {len(model.scale)} groups, not {group_count(name)}")
        size = len(model.tables) << (model.precision + 1)
        spent += size
        codes += size if name.startswith("code") else 0
        if codes > 2 * MAX_LUT_BYTES:
            raise ArtifactError(f"{here}: the tables of all codes are too many")
        if spent > LUT_ROOM + LUT_RATIO * len(data):
            raise ArtifactError(f"{here}: the tables so far are too many for {len(data):,} bytes")
        models[name] = model
    reader.finish()
    return models, table


def _table(
    reader: varint.Reader, parameters: Parameters, where: str
) -> tuple[npt.NDArray[np.float32], dict[str, tuple[int, int]]]:
    """Axes or codebooks, and the limits of symbols, those that address them included."""
    width, spec = 3 * parameters.coefficients, parameters.harmonic_spec
    limits = {"class": (0, CLASSES - 1)}
    if spec is None:
        rank = reader.take(width)
        axes = np.frombuffer(reader.take_bytes(rank * width), np.int8).reshape(rank, width)
        return axes.astype(np.float32) / np.float32(BASIS_SCALE), limits | {"count": (0, rank)}
    shape = codebooks.shape(parameters.coefficients, spec)
    books = codebooks.from_bytes(reader.take_bytes(2 * math.prod(shape)), shape, where)
    return books, limits | dict.fromkeys(streams_of(parameters)["harmonics"], (0, spec.K - 1))
