"""The folder ``<out>.partial``: locking it, and recovering the work of an earlier run."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from dpq_core.artifact import files
from dpq_core.artifact.entries import FileEntry
from dpq_core.artifact.files import JOURNAL_NAME, MANIFEST_NAME, PARTIAL_SUFFIX
from dpq_core.artifact.journal import Finished, Journal
from dpq_core.artifact.shards import Shard
from dpq_core.errors import CONTINUE, REPLACE, START_OVER, ArtifactError


def enter(
    out: Path, *, resume: bool, overwrite: bool, matches: Callable[[Path], bool]
) -> Journal | Path:
    """Lock the folder to write in, new or resumed; or return the folder that is complete already.

    Args:
        out: absolute path of the final folder.
        resume: continue an earlier run.
        overwrite: replace ``out``, and start over where there is something to resume.
        matches: whether a folder is the whole artifact that this run would write.

    Raises:
        ArtifactError: ``out`` is in the way, there is unfinished work that is neither to be
            resumed nor overwritten, or another process is writing.
        OSError: the file system refused.
    """
    partial = out.with_name(out.name + PARTIAL_SUFFIX)
    _check_out(out)
    journalled = (partial / JOURNAL_NAME).exists()
    if resume and not journalled and matches(out):
        return out
    if _occupied(out) and not overwrite:
        raise ArtifactError(f"{out}: exists already", REPLACE)
    if partial.exists() or partial.is_symlink():
        if not resume and not overwrite:
            raise ArtifactError(f"{partial}: an earlier run was not finished", CONTINUE)
        _check_ours(partial)
        if journalled:
            journal = Journal(partial / JOURNAL_NAME, create=False)
            if resume:
                return journal
            files.discard(partial)
            journal.close()
        elif resume and (partial / MANIFEST_NAME).exists():
            if not matches(partial):
                raise ArtifactError(
                    f"{partial}: belongs to another source or spec, or is damaged; delete it, or "
                    "start over",
                    START_OVER,
                )
            return partial
        else:
            files.discard(partial)
    partial.mkdir(parents=True)
    return Journal(partial / JOURNAL_NAME, create=True)


def _check_out(out: Path) -> None:
    if not out.name or out.name.endswith(PARTIAL_SUFFIX):
        raise ArtifactError(f"{out}: cannot be an output; {PARTIAL_SUFFIX} marks unfinished work")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ArtifactError(f"{out}: exists and is not a folder; choose another name")
    if _occupied(out) and not (out / MANIFEST_NAME).is_file():
        raise ArtifactError(f"{out}: exists and is not a dpq artifact; choose another name")


def _check_ours(partial: Path) -> None:
    if partial.is_symlink() or not partial.is_dir():
        raise ArtifactError(f"{partial}: is not a folder of dpq; move it away")
    is_ours = any((partial / name).is_file() for name in (JOURNAL_NAME, MANIFEST_NAME))
    if not is_ours and _occupied(partial):
        raise ArtifactError(f"{partial}: holds files that are not of dpq; move it away")


def _occupied(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def recover(
    partial: Path, shards: Iterable[Shard], finished: list[Finished]
) -> tuple[hashlib._Hash, dict[str, FileEntry]]:
    """Hash the bytes that the journal lists, cut off all others and delete unlisted files.

    Returns:
        The running sha256 of the last shard, and the entries of the shards that are complete.

    Raises:
        ArtifactError: the journal does not follow the plan, or bytes changed since.
        OSError: the file system refused.
    """
    planned = [
        (tensor, shard.file, shard.end(tensor)) for shard in shards for tensor in shard.tensors
    ]
    for line, expected in itertools.zip_longest(finished, planned[: len(finished)]):
        if (line.name, line.shard, line.end) != expected:
            raise ArtifactError(
                f"{partial / JOURNAL_NAME}: does not follow the plan at {line.name!r}; "
                f"delete {partial} to start over"
            )
    digest = hashlib.sha256()
    complete: dict[str, FileEntry] = {}
    lines = iter(finished)
    for shard in shards:
        finished_here = list(itertools.islice(lines, len(shard.tensors)))
        if not finished_here:
            break
        digest = _rehash(partial / shard.file, finished_here)
        if len(finished_here) == len(shard.tensors):
            complete[shard.file] = FileEntry(finished_here[-1].end, finished_here[-1].sha256)
    _sweep(partial, {JOURNAL_NAME, *(line.shard for line in finished)})
    return digest, complete


def _rehash(path: Path, lines: list[Finished]) -> hashlib._Hash:
    digest = hashlib.sha256()
    position = 0
    with files.reading(path), path.open("rb") as file:
        for line in lines:
            while position < line.end:
                block = file.read(min(files.BLOCK_BYTES, line.end - position))
                if not block:
                    break
                digest.update(block)
                position += len(block)
            if digest.hexdigest() != line.sha256:
                raise ArtifactError(
                    f"{path}: the bytes of tensor {line.name!r} changed since they were written; "
                    "start over",
                    START_OVER,
                )
    os.truncate(path, position)
    return digest


def _sweep(partial: Path, keep: set[str]) -> None:
    """Delete all files but ``keep``, and the folders that this leaves empty."""
    for folder, _, names in os.walk(partial, topdown=False):
        for name in names:
            path = Path(folder) / name
            if path.relative_to(partial).as_posix() not in keep:
                path.unlink()
        if Path(folder) != partial and not any(Path(folder).iterdir()):
            Path(folder).rmdir()
