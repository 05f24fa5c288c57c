"""BlockStore: the finished blocks of sequential quantization on disk, to resume from.

``<out>.blocks/journal.json`` lists the finished segments; each has one safetensors file with the
stored parts of its tensors (``NAME.part``). A segment is in the journal only after its bytes are
durable, so that a killed run continues after the last finished block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dpq_core.artifact import files, strict_json
from dpq_core.artifact.strict_json import exactly, typed
from dpq_core.data.sequential.activations import save
from dpq_core.errors import CONTINUE, START_OVER, ArtifactError

BLOCKS_SUFFIX = ".blocks"
JOURNAL_NAME = "journal.json"
JOURNAL_VERSION = 1
MAX_JOURNAL_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class FinishedTensor:
    """One quantized tensor: its stored parts by name, and its relative error."""

    parts: Mapping[str, Tensor]
    relative_error: float


class BlockStore:
    """The store of one run, beside its output.

    Attributes:
        folder: ``<out>.blocks``.
        segments: finished segments, in order: name -> the tensors in it with their errors.
        complete: whether all segments are finished.
    """

    def __init__(self, out: Path, fingerprint: str, *, resume: bool, overwrite: bool) -> None:
        """Open the store beside ``out``, new or resumed; the caller has locked ``out``.

        Raises:
            ArtifactError: there is a store already, and it is another run's, damaged, or neither
                to be resumed nor overwritten.
        """
        self.folder = _folder_of(out)
        self.segments: dict[str, dict[str, float]] = {}
        self.complete = False
        self._fingerprint = fingerprint
        journal = self.folder / JOURNAL_NAME
        if resume and journal.exists():
            self._load(journal)
            return
        if self.folder.exists() and not (resume or overwrite):
            raise ArtifactError(f"{self.folder}: an earlier run was not finished", CONTINUE)
        discard_blocks(out)
        with files.writing(self.folder):
            self.folder.mkdir(parents=True)
        self._write_journal()

    @property
    def scratch(self) -> Path:
        """The folder of temporary files, deleted at the end of the run."""
        return self.folder / "scratch"

    @property
    def errors(self) -> dict[str, float]:
        """The relative error of every finished tensor, by name."""
        return {name: e for tensors in self.segments.values() for name, e in tensors.items()}

    def finish(self, segment: str, tensors: Mapping[str, FinishedTensor]) -> None:
        """Add a finished segment; it is on disk when this returns.

        Raises:
            ArtifactError: the disk refused.
        """
        named = {
            f"{name}.{part}": value.cpu().contiguous()
            for name, tensor in tensors.items()
            for part, value in tensor.parts.items()
        }
        with files.replacing(self._file(len(self.segments)), files.RESUME) as partial:
            save(named, partial)
        self.segments[segment] = {n: float(t.relative_error) for n, t in tensors.items()}
        self._write_journal()

    def close(self) -> None:
        """Mark the store as complete.

        Raises:
            ArtifactError: the disk refused.
        """
        self.complete = True
        self._write_journal()

    def read(self, name: str) -> FinishedTensor:
        """Read one finished tensor, and nothing else, into memory.

        Raises:
            ArtifactError: it cannot be read.
        """
        numbered = enumerate(self.segments.values())
        number, error = next((i, errors[name]) for i, errors in numbered if name in errors)
        path = self._file(number)
        try:
            with safe_open(path, framework="pt") as handle:
                keys = [key for key in handle.keys() if key.rpartition(".")[0] == name]  # noqa: SIM118
                parts = {key.rpartition(".")[2]: handle.get_tensor(key).clone() for key in keys}
        except (SafetensorError, OSError) as failure:
            raise self._damaged(path, f"cannot be read ({failure})") from None
        return FinishedTensor(parts=parts, relative_error=error)

    def restored(self, segment: str) -> Iterator[tuple[str, FinishedTensor]]:
        """The tensors of a finished segment, one at a time."""
        for name in self.segments[segment]:
            yield name, self.read(name)

    def _file(self, number: int) -> Path:
        return self.folder / f"segment-{number:05d}.safetensors"

    def _write_journal(self) -> None:
        content = {
            "journal": JOURNAL_VERSION,
            "fingerprint": self._fingerprint,
            "complete": self.complete,
            "segments": [{"name": n, "tensors": t} for n, t in self.segments.items()],
        }
        with files.replacing(self.folder / JOURNAL_NAME, files.RESUME) as partial:
            partial.write_text(json.dumps(content, allow_nan=False), encoding="ascii")

    def _load(self, journal: Path) -> None:
        where = str(journal)
        with files.reading(journal):
            if journal.stat().st_size > MAX_JOURNAL_BYTES:
                raise self._damaged(journal, "is too large")
            content = strict_json.parse(journal.read_bytes(), where)
        if content.get("journal") != JOURNAL_VERSION:
            raise self._damaged(journal, "is of an unknown version")
        if content.get("fingerprint") != self._fingerprint:
            raise ArtifactError(
                f"{self.folder}: these half-finished blocks belong to another source, spec or "
                "calibration data; delete it, or start over",
                START_OVER,
            )
        self.complete = typed(content.get("complete"), bool, where)
        for item in typed(content.get("segments"), list, where):
            segment: dict[str, Any] = exactly(item, ("name", "tensors"), where)
            tensors = typed(segment["tensors"], dict, where)
            self.segments[typed(segment["name"], str, where)] = {
                name: typed(error, float, where) for name, error in tensors.items()
            }

    def _damaged(self, path: Path, why: str) -> ArtifactError:
        return ArtifactError(f"{path}: {why}; delete {self.folder} to start over")


def discard_blocks(out: Path) -> None:
    """Delete the store beside ``out``, if there is one.

    Raises:
        ArtifactError: the folder holds files that are not of dpq, or the disk refused.
    """
    folder = _folder_of(out)
    if not folder.exists():
        return
    empty = all(path.name.startswith(JOURNAL_NAME) for path in folder.iterdir())
    is_store = empty or (folder / JOURNAL_NAME).exists()
    if folder.is_symlink() or not is_store:
        raise ArtifactError(f"{folder}: is not a folder of dpq; move it away")
    with files.writing(folder):
        files.discard(folder)


def _folder_of(out: Path) -> Path:
    return out.with_name(out.name + BLOCKS_SUFFIX)
