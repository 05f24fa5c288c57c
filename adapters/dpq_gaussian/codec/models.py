"""The ``models`` stream: principal axes of the harmonics and all context models."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dpq_core import entropy_io, varint
from dpq_core.entropy import Model
from dpq_core.errors import ArtifactError
from dpq_gaussian.codec.harmonics import BASIS_SCALE
from dpq_gaussian.codec.layout import STREAMS, Parameters, group_count
from dpq_gaussian.policy import CLASSES

MAX_BYTES = 64 << 20
"""Of the stream when inflated."""

_LIMITS: Mapping[str, tuple[int, int]] = {"class": (0, CLASSES - 1), "count": (0, 45)}
"""Smallest and largest symbol of a sequence that others depend on."""


def sequences(parameters: Parameters) -> tuple[str, ...]:
    """The names of all sequences of a file, in the order of their models."""
    streams = (s for s in STREAMS if s != "harmonics" or parameters.coefficients)
    return tuple(name for stream in streams for name in STREAMS[stream])


def pack(models: Mapping[str, Model], axes: npt.NDArray[np.int8]) -> bytes:
    """The stream: rows of the axes ``[R, 3 M]``, then the models, deflated."""
    body = varint.pack([len(axes)]) + axes.tobytes()
    body += b"".join(entropy_io.to_bytes(model) for model in models.values())
    return zlib.compress(body, 9)


def unpack(
    data: bytes | memoryview, parameters: Parameters, where: str
) -> tuple[dict[str, Model], npt.NDArray[np.float32]]:
    """The models by sequence, and the principal axes float32 ``[R, 3 M]``.

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
    width = 3 * parameters.coefficients
    rank = reader.take(width)
    axes = np.frombuffer(reader.take_bytes(rank * width), np.int8).reshape(rank, width)
    models = {}
    for name in sequences(parameters):
        here = f"{where}: sequence {name!r}"
        model = entropy_io.from_reader(reader, here)
        low, high = _LIMITS.get(name, (model.low, model.high))
        high = min(high, rank) if name == "count" else high
        if model.low < low or model.high > high:
            raise ArtifactError(f"{here}: its symbols are not all in {low}..{high}")
        if len(model.scale) != group_count(name):
            raise ArtifactError(f"{here}: {len(model.scale)} groups, not {group_count(name)}")
        models[name] = model
    reader.finish()
    return models, axes.astype(np.float32) / np.float32(BASIS_SCALE)
