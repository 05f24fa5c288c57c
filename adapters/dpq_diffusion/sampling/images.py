"""Sets of equally sized images: tensors, folders of PNG files, ADM ``.npz`` batches.

Whatever the source, images come out as uint8 ``[n, height, width, 3]``; one grey channel is
repeated three times, which is what the feature extractors expect of grey images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpq_core.artifact.files import replacing
from dpq_core.artifact.zip_members import DEFLATE_RATIO
from dpq_core.errors import SourceError
from dpq_core.run import Progress, silent
from dpq_diffusion.sampling import npz

ARRAY = "arr_0"
"""The name under which ADM batches hold their images."""

MAX_SIDE = 16_384
"""Largest side in pixels; a header that says more is refused before anything is allocated."""


class Images(Protocol):
    """A set of equally sized images that can be read in batches, any number of times."""

    @property
    def name(self) -> str:
        """The name of the set in protocols, e.g. the file's name."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    def __len__(self) -> int:
        """How many there are."""

    def batches(self, size: int) -> Iterator[Tensor]:
        """Uint8 ``[n, height, width, 3]`` with ``n <= size``, in order."""


class ArrayImages:
    """A set of images in memory: uint8 ``[N, H, W, C]``, C = 1 or 3, a tensor or NumPy array.

    Raises:
        SourceError: another shape or dtype.
    """

    def __init__(self, images: Tensor | NDArray[Any], name: str = "images") -> None:
        array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
        self._array: NDArray[Any] = array
        _check(name, self._array.shape, self._array.dtype)
        self.name = name
        self.size: tuple[int, int] = self._array.shape[1:3]

    def __len__(self) -> int:
        return len(self._array)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Uint8 ``[n, height, width, 3]`` with ``n <= size``, in order."""
        for first in range(0, len(self._array), size):
            yield _rgb(self._array[first : first + size])


class NpzImages:
    """The set of images ``arr_0`` of an ADM ``.npz`` file, read batch by batch.

    Raises:
        SourceError: the file is unreadable, or holds no uint8 images ``[N, H, W, C]``.
    """

    def __init__(self, path: Path) -> None:
        headers = npz.read_headers(path)
        if ARRAY not in headers:
            names = ", ".join(sorted(headers)) or "nothing"
            raise SourceError(f"{path}: holds no images ({ARRAY!r}), only {names}")
        header = headers[ARRAY]
        _check(f"{path}: {ARRAY!r}", header.shape, header.dtype)
        self._path = path
        self._count = header.shape[0]
        self.name = path.name
        self.size: tuple[int, int] = (header.shape[1], header.shape[2])

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[Tensor]:
        """Uint8 ``[n, height, width, 3]`` with ``n <= size``, in order."""
        for rows in npz.read_rows(self._path, ARRAY, size):
            yield _rgb(rows)


class PngFolder:
    """The set of all ``*.png`` directly in a folder, in the order of their names.

    Raises:
        SourceError: no such folder, no PNG in it, or the first one is unreadable.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise SourceError(f"{folder}: no such folder of images")
        self._paths = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".png")
        if not self._paths:
            raise SourceError(f"{folder}: holds no .png files")
        self.name = folder.name
        height, width, _ = _read_png(self._paths[0]).shape
        self.size: tuple[int, int] = (height, width)

    def __len__(self) -> int:
        return len(self._paths)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Uint8 ``[n, height, width, 3]`` with ``n <= size``, in order."""
        for first in range(0, len(self._paths), size):
            yield torch.stack([self._read(path) for path in self._paths[first : first + size]])

    def _read(self, path: Path) -> Tensor:
        image = _read_png(path)
        if image.shape[:2] != self.size:
            raise SourceError(
                f"{path}: {image.shape[0]}x{image.shape[1]} pixels, but {self._paths[0].name} has "
                f"{self.size[0]}x{self.size[1]}; all images must be equal in size"
            )
        return torch.from_numpy(image)


def write_npz(
    path: Path, images: Images, *, batch_size: int = 64, progress: Progress = silent
) -> None:
    """Write images as the ADM evaluator reads them: uint8 ``arr_0`` ``[N, H, W, 3]``.

    The memory of one batch suffices; the file appears once it is whole.

    Raises:
        SourceError: an image cannot be read.
        ArtifactError: the file cannot be written.
    """
    header = npz.Header((len(images), *images.size, 3), np.dtype(np.uint8))
    done = 0
    with (
        replacing(path) as partial,
        npz.NpzWriter(partial) as writer,
        writer.array(ARRAY, header) as stream,
    ):
        for batch in images.batches(batch_size):
            stream.write(batch.contiguous().numpy().tobytes())
            done += len(batch)
            progress(f"writing {path.name}", done, len(images))


def _read_png(path: Path) -> NDArray[np.uint8]:
    """Read one PNG file as uint8 ``[H, W, 3]``."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            if max(image.size) > MAX_SIDE:
                raise SourceError(f"{path}: more than {MAX_SIDE:,} pixels a side")
            if math.prod(image.size) > 8 * DEFLATE_RATIO * path.stat().st_size:  # 8 of one bit
                pixels = "{}x{} pixels".format(*image.size)
                raise SourceError(f"{path}: claims {pixels}, more than its bytes can hold")
            if image.mode not in ("RGB", "L", "P", "1"):
                raise SourceError(f"{path}: mode {image.mode}; save 8-bit RGB or grey images")
            return np.array(image.convert("RGB"))  # a copy: the view of Pillow is read-only
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise SourceError(f"{path}: not a readable PNG ({reason})") from None


def _check(where: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise SourceError(
            f"{where}: shape {list(shape)}; expected [N, height, width, channels], 1 or 3 channels"
        )
    if dtype != np.uint8:
        raise SourceError(f"{where}: dtype {dtype}; expected uint8 with values 0 to 255")
    if math.prod(shape) == 0:
        raise SourceError(f"{where}: shape {list(shape)} holds no images")
    if max(shape[1:3]) > MAX_SIDE:
        raise SourceError(f"{where}: {shape[1]}x{shape[2]}; at most {MAX_SIDE:,} pixels a side")


def _rgb(array: NDArray[Any]) -> Tensor:
    """A tensor ``[n, H, W, 3]`` of uint8 images ``[n, H, W, 1 or 3]``."""
    images = torch.from_numpy(np.ascontiguousarray(array))
    return images if images.shape[3] == 3 else images.expand(-1, -1, -1, 3)
