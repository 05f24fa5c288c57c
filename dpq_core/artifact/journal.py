"""The journal of a half-written artifact: its finished tensors, and a lock for its writer.

The first line is the identity of the run; every other line is one finished tensor, appended only
after its bytes are durable. The journal can therefore lag behind the data, never run ahead.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpq_core.artifact import strict_json
from dpq_core.artifact.files import sync_folder, write_all
from dpq_core.artifact.strict_json import integer, typed
from dpq_core.errors import START_OVER, ArtifactError

JOURNAL_VERSION = 1
MAX_JOURNAL_BYTES = 256 << 20


@dataclass(frozen=True)
class Finished:
    """One finished tensor of a half-written artifact.

    Attributes:
        name: name of the model's tensor.
        shard: relative name of its file.
        end: size of that file in bytes once the tensor was written.
        sha256: hash of those ``end`` bytes, header included.
        relative_error: relative error as measured, or None.
    """

    name: str
    shard: str
    end: int
    sha256: str
    relative_error: float | None

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Finished:
        """Read one line of the journal.

        Raises:
            ArtifactError: a key is missing or unknown, or a value is of the wrong type.
        """
        fields = strict_json.exactly(dict(data), cls.__dataclass_fields__, where)
        error = fields["relative_error"]
        return cls(
            name=typed(fields["name"], str, where),
            shard=typed(fields["shard"], str, where),
            end=integer(fields["end"], 2**62, where),
            sha256=typed(fields["sha256"], str, where),
            relative_error=None if error is None else typed(error, float, where),
        )


class Journal:
    """The open and locked journal of one writer; the writer must close it."""

    def __init__(self, path: Path, *, create: bool) -> None:
        """Open and lock the file.

        Raises:
            ArtifactError: another process holds the lock.
            OSError: the file cannot be opened.
        """
        self.path = path
        self._end = 0
        flags = os.O_RDWR
        for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"):  # as far as the system has them
            flags |= getattr(os, name, 0)
        self._descriptor: int | None = os.open(path, flags | (os.O_CREAT if create else 0), 0o666)
        try:
            self._lock()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        assert self._descriptor is not None
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._taken() from None
            except OSError:  # a file system without locks: better unguarded than unusable
                pass
            # The holder may have finished, and the folder may be gone, while we opened the file.
            if not self.path.exists() or not os.path.samestat(
                os.fstat(self._descriptor), self.path.stat()
            ):
                raise self._taken()

    def _taken(self) -> ArtifactError:
        return ArtifactError(f"{self.path.parent}: another dpq is writing here; wait for it")

    def start(self, identity: Mapping[str, Any]) -> None:
        """Write the first line, and make it durable."""
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        self._end = 0
        self._append([{"journal": JOURNAL_VERSION, **identity}])
        os.fsync(self._descriptor)
        sync_folder(self.path.parent)

    def append(self, finished: Iterable[Finished]) -> None:
        """Add lines of tensors whose bytes the caller has made durable."""
        self._append(asdict(line) for line in finished)

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        assert self._descriptor is not None
        # From the last good end: after a full disk, the retry overwrites what was cut.
        os.lseek(self._descriptor, self._end, os.SEEK_SET)
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_all(self._descriptor, text.encode("ascii"))
        self._end += len(text)

    def load(self, identity: Mapping[str, Any]) -> list[Finished] | None:
        """The finished tensors, or None when not even the first line was completed.

        A last line without its newline was cut by a kill; it is dropped, here and in the file.

        Raises:
            ArtifactError: the journal belongs to another run, or is damaged.
        """
        assert self._descriptor is not None
        size = os.fstat(self._descriptor).st_size
        if size > MAX_JOURNAL_BYTES:
            raise self._damaged(f"{size} bytes are over the limit {MAX_JOURNAL_BYTES}")
        with self.path.open("rb") as file:
            whole = file.read(size)
        whole = whole[: whole.rfind(b"\n") + 1]
        os.ftruncate(self._descriptor, len(whole))
        self._end = len(whole)
        first, *rest = whole.splitlines() or [b""]
        if not first:
            return None
        self._check_identity(strict_json.parse(first, f"{self.path}: line 1"), identity)
        lines = []
        for number, line in enumerate(rest, 2):
            where = f"{self.path}: line {number}"
            lines.append(Finished.from_json(strict_json.parse(line, where), where))
        return lines

    def _check_identity(self, stored: dict[str, Any], identity: Mapping[str, Any]) -> None:
        version = stored.pop("journal", None)
        if version != JOURNAL_VERSION:
            raise self._damaged(f"journal version {strict_json.shown(version)} is not known")
        check_identity(self.path.parent, stored, identity)

    def _damaged(self, why: str) -> ArtifactError:
        return ArtifactError(f"{self.path}: {why}; delete {self.path.parent} to start over")

    def close(self) -> None:
        """Release the lock; harmless when repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    __del__ = close


def check_identity(path: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse to continue a run whose bytes would differ from those of this one.

    Raises:
        ArtifactError: source, spec or library versions differ; the message names the first.
    """
    different = [key for key in (*identity, *stored) if stored.get(key) != identity.get(key)]
    if not different:
        return
    if different[0] == "versions":
        before, now = stored.get("versions"), identity["versions"]
        if isinstance(before, dict):
            library = next(k for k in (*now, *before) if before.get(k) != now.get(k))
            raise ArtifactError(
                f"{path}: was begun with {library} {before.get(library)}, this is "
                f"{now.get(library)}; go back to that version, or delete it to start over"
            )
    raise ArtifactError(
        f"{path}: this half-written output belongs to another source or spec "
        f"({different[0]} differs); delete it, or start over",
        START_OVER,
    )
