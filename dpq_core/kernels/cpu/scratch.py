"""Memory that compiled loops reuse: fresh memory costs more, in page faults, than they compute."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

_local = threading.local()  # .buffers: by name, uint8, as large as this thread has needed so far


def scratch(name: str, nbytes: int) -> NDArray[np.uint8]:
    """Memory of this thread under a name, uint8 ``[nbytes]``, which the next call hands out again.

    Args:
        name: what it is for.
        nbytes: bytes that are needed.
    """
    buffers: dict[str, NDArray[np.uint8]] = _local.__dict__.setdefault("buffers", {})
    buffer = buffers.get(name)
    if buffer is None or len(buffer) < nbytes:
        buffer = buffers[name] = np.empty(nbytes, np.uint8)
    return buffer[:nbytes]


def array(name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """An array of a shape and dtype in that memory."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    return scratch(name, nbytes).view(dtype).reshape(shape)
