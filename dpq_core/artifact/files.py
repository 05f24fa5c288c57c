"""Files of an artifact: safe names, atomic and durable writing, replacing and deleting."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from dpq_core.artifact import strict_json
from dpq_core.artifact.strict_json import shown
from dpq_core.errors import ArtifactError, Hint

MANIFEST_NAME = "dpq.json"
JOURNAL_NAME = "journal.jsonl"
PARTIAL_SUFFIX = ".partial"
REPLACED_SUFFIX = ".replaced"
DISCARDED_SUFFIX = ".discarded"
MAX_PATH_BYTES = 500
RESUME = Hint.of("mend this and continue with {}", resume=True)
"""The hint where the operating system refused and finished work is kept."""
BLOCK_BYTES = 1 << 22
"""Bytes read, hashed or copied at a time."""


def check_name(name: object, where: str) -> str:
    """Check that ``name`` is a plain relative path with ``/`` between its segments; returns it.

    Raises:
        ArtifactError: the name is absolute, with ``..`` or empty segments, a backslash, a colon
            (drives) or a character that is not printable, or dpq reserves it.
    """
    path = strict_json.text(name, MAX_PATH_BYTES, f"{where}: file name")
    segments = path.split("/")
    if any(s in ("", ".", "..") for s in segments) or "\\" in path or ":" in path:
        raise ArtifactError(f"{where}: file name {shown(path)} is not a plain relative path")
    if path in (MANIFEST_NAME, JOURNAL_NAME):
        raise ArtifactError(f"{where}: file name {shown(path)} is reserved")
    return path


def locate(root: Path, name: str) -> tuple[Path, int]:
    """The regular file ``name`` below ``root`` and its size in bytes.

    Symbolic links may not lead out of ``root``; the one exception is the Hugging Face cache,
    where ``<repo>/snapshots/<revision>/`` consists of links into ``<repo>/blobs/``.

    Raises:
        ArtifactError: the file is missing, leads elsewhere or is not a regular file.
    """
    path = root / name
    try:
        home, real = root.resolve(strict=True), path.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = getattr(error, "strerror", None) or "a loop of symbolic links"
        raise ArtifactError(f"{path}: cannot be opened ({reason})") from None
    cached = home.parent.name == "snapshots" and real.is_relative_to(home.parent.parent / "blobs")
    if not real.is_relative_to(home) and not cached:
        raise ArtifactError(f"{path}: a symbolic link that leads out of the artifact")
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{path}: not a regular file")
    return path, status.st_size


def walk(root: Path) -> Iterator[str]:
    """Relative names of all files and links below ``root``; links are not followed."""
    for folder, _, names in os.walk(root, followlinks=False):
        for name in names:
            yield PurePosixPath((Path(folder) / name).relative_to(root)).as_posix()


def hash_file(path: Path, tick: Callable[[int], None]) -> str:
    """Sha256 of a file, read block by block; ``tick`` is called with the size of each block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            tick(len(block))
    return digest.hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError (disk full, permission, ...) into one line with a hint how to continue.

    Raises:
        ArtifactError: the operating system refused.
    """
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot write ({error.strerror or error}); what is finished is kept", RESUME
        ) from None


@contextmanager
def replacing(path: Path, hint: Hint | None = None) -> Iterator[Path]:
    """Give a file to write, which becomes ``path`` at the end of the block: whole, or not at all.

    Args:
        path: the final file; its folder is made where it is missing.
        hint: what to do where the operating system refuses.

    Raises:
        ArtifactError: the operating system refused.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            reason = error.strerror or error
            left = "what was there is kept" if path.exists() else "nothing was left there"
            raise ArtifactError(f"{path}: cannot write ({reason}); {left}", hint) from None
        raise


@contextmanager
def making_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``path`` at the end of the block: whole, or not at all.

    Args:
        path: the final folder; its parent is made where it is missing.
        replace: whether the new folder takes the place of one that is there; otherwise that one,
            which another process made meanwhile, stays and the new one is deleted.

    Raises:
        ArtifactError: the operating system refused.
    """
    partial = path.with_name(f"{path.name}{PARTIAL_SUFFIX}-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        yield partial
        try:
            partial.rename(path)  # replaces an empty folder
        except OSError:
            if not path.is_dir():
                raise
            if replace and not _exchange(partial, path):
                discard(path)
                partial.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(f"{path}: cannot write ({reason}); nothing was changed there") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError into one line.

    Raises:
        ArtifactError: the operating system refused.
    """
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read ({error.strerror or error})") from None


def blocks(content: bytes | Path) -> Iterator[bytes]:
    """The blocks of a content that is given as bytes or as a file.

    Raises:
        ArtifactError: the file cannot be read.
    """
    if isinstance(content, bytes):
        yield content
        return
    with reading(content), content.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all bytes to a file descriptor (one call of ``os.write`` takes at most 2 GiB)."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


def sync_folder(path: Path) -> None:
    """Make the entries of a folder durable, where the system can (not on Windows)."""
    if sys.platform != "win32":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def publish(partial: Path, out: Path, *, replace: bool) -> None:
    """Rename ``partial`` to ``out``; ``replace`` deletes an artifact there.

    Raises:
        OSError: the file system refused, or a folder that is not empty is in the way.
    """
    if not (replace and (out / MANIFEST_NAME).exists()):
        partial.rename(out)  # atomic; replaces an empty folder, refuses any other
    elif not _exchange(partial, out):
        # A moment without ``out``; a killed run leaves a whole ``partial`` for a resumed run.
        old = out.with_name(out.name + REPLACED_SUFFIX)
        discard(old)
        out.rename(old)
        partial.rename(out)
    sync_folder(out.parent)
    clear(out)


def clear(out: Path) -> None:
    """Delete what ``out`` has replaced, also what a killed run could not delete."""
    for suffix in (PARTIAL_SUFFIX, REPLACED_SUFFIX):
        old = out.with_name(out.name + suffix)
        if (old / MANIFEST_NAME).is_file() and not (old / JOURNAL_NAME).exists():
            discard(old)
        shutil.rmtree(old.with_name(old.name + DISCARDED_SUFFIX), ignore_errors=True)


def discard(path: Path) -> None:
    """Delete a folder; it is renamed first, so that a killed run never leaves half of it."""
    if path.exists():
        doomed = path.with_name(path.name + DISCARDED_SUFFIX)
        if doomed.exists():
            shutil.rmtree(doomed)
        path.rename(doomed)
        shutil.rmtree(doomed)


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one atomic step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(a), os.fsencode(b)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def check_adapter(path: Path, made_by: str, adapter: str | None) -> None:
    """Refuse an artifact that was not made by ``adapter``; None allows any.

    Raises:
        ArtifactError: another adapter made it.
    """
    if adapter not in (None, made_by):
        raise ArtifactError(f"{path}: made by the adapter {made_by!r}")
