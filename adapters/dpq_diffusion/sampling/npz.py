"""NumPy ``.npz`` files, read without trusting them and written reproducibly.

Nothing is unpickled, an array's header is checked before anything is allocated, and large arrays
are read row by row, so that a batch of 50,000 images needs the memory of one batch.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dpq_core.artifact.files import replacing
from dpq_core.artifact.zip_members import open_member
from dpq_core.errors import SourceError

_SUFFIX = ".npy"
_MAX_HEADER_BYTES = 10_000
_DATE = (1980, 1, 1, 0, 0, 0)  # equal content gives equal files


@dataclass(frozen=True)
class Header:
    """The shape and dtype of an array, as its header says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_headers(path: Path) -> dict[str, Header]:
    """The headers of a file's arrays by name; the arrays themselves are not read.

    Raises:
        SourceError: not a readable ``.npz``, an array of Python objects, in Fortran order, of an
            unknown format version, or of another length than its header says.
    """
    with _readable(path), zipfile.ZipFile(path) as archive:
        headers = {}
        for entry in archive.infolist():
            if entry.filename.endswith(_SUFFIX):
                with open_member(archive, entry.filename) as file:
                    name = entry.filename.removesuffix(_SUFFIX)
                    headers[name] = _header(file, entry.file_size, f"{path}: array {name!r}")
        return headers


def read_array(path: Path, name: str, max_bytes: int) -> NDArray[Any]:
    """Read one whole array.

    Raises:
        SourceError: as ``read_headers``; missing, larger than ``max_bytes`` or truncated.
    """
    header = _named(path, name)
    if header.nbytes > max_bytes:
        raise SourceError(
            f"{path}: array {name!r} has {header.nbytes:,} bytes; at most {max_bytes:,} are read"
        )
    count = max(1, header.shape[0] if header.shape else 1)
    for rows in read_rows(path, name, count):
        return rows.reshape(header.shape)
    return np.empty(header.shape, header.dtype)


def read_rows(path: Path, name: str, count: int) -> Iterator[NDArray[Any]]:
    """Read an array in consecutive slices of at most ``count`` along the first axis.

    Raises:
        SourceError: as ``read_headers``; missing or truncated.
    """
    header = _named(path, name)
    length, *rest = header.shape or (1,)
    with (
        _readable(path),
        zipfile.ZipFile(path) as archive,
        open_member(archive, name + _SUFFIX) as file,
    ):
        _skip_header(file)
        for first in range(0, length, count):
            shape = (min(count, length - first), *rest)
            nbytes = math.prod(shape) * header.dtype.itemsize
            data = bytearray(file.read(nbytes))
            if len(data) != nbytes:
                raise SourceError(f"{path}: array {name!r} is truncated at row {first}")
            yield np.frombuffer(data, header.dtype).reshape(shape)


def _named(path: Path, name: str) -> Header:
    headers = read_headers(path)
    if name not in headers:
        names = ", ".join(sorted(headers)) or "nothing"
        raise SourceError(f"{path}: holds no array {name!r}, only {names}")
    return headers[name]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A context that turns the errors of zipfile and numpy for damaged files into one line."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        EOFError,
        NotImplementedError,  # an unknown compression
        RuntimeError,  # an encrypted archive
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else "cut off"
        raise SourceError(f"{path}: not a readable .npz file ({reason})") from None


def _header(file: IO[bytes], size: int, where: str) -> Header:
    shape, fortran, dtype = _skip_header(file)
    if dtype.hasobject:
        raise SourceError(f"{where} holds Python objects, which are never unpickled")
    if fortran:
        raise SourceError(f"{where} is in Fortran order; save numpy.ascontiguousarray of it")
    header = Header(shape, dtype)
    if min(shape, default=0) < 0 or file.tell() + header.nbytes != size:
        raise SourceError(
            f"{where} says {list(shape)} of {dtype}, {header.nbytes:,} bytes, but "
            f"{size - file.tell():,} are stored"
        )
    return header


def _skip_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file, _MAX_HEADER_BYTES)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file, _MAX_HEADER_BYTES)
    raise ValueError(f"an array in .npy version {version[0]}.{version[1]}")


class NpzWriter:
    """A writer of arrays into a new, uncompressed archive; equal content gives equal bytes."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._archive.close()

    @contextmanager
    def array(self, name: str, header: Header) -> Iterator[IO[bytes]]:
        """Open a file that takes the elements of one array, in C order."""
        entry = zipfile.ZipInfo(name + _SUFFIX, _DATE)
        with self._archive.open(entry, "w", force_zip64=True) as file:
            fields = {
                "descr": np.lib.format.dtype_to_descr(header.dtype),
                "fortran_order": False,
                "shape": header.shape,
            }
            np.lib.format.write_array_header_1_0(file, fields)
            yield file


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write whole arrays into a new ``.npz`` file.

    Raises:
        ArtifactError: it cannot be written.
    """
    with replacing(path) as partial, NpzWriter(partial) as writer:
        for name, array in arrays.items():
            with writer.array(name, Header(array.shape, array.dtype)) as stream:
                stream.write(np.ascontiguousarray(array).tobytes())
