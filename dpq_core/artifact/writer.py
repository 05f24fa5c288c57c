"""ArtifactWriter: writes an artifact tensor by tensor; it gets its name when it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from torch import Tensor

from dpq_core.artifact import shards, workspace
from dpq_core.artifact.entries import DataEntry, FileEntry
from dpq_core.artifact.files import (
    MANIFEST_NAME,
    PARTIAL_SUFFIX,
    blocks,
    check_name,
    clear,
    publish,
    sync_folder,
    writing,
)
from dpq_core.artifact.journal import Journal
from dpq_core.artifact.manifest import Manifest, draft
from dpq_core.artifact.reader import Artifact, assemble, load
from dpq_core.artifact.shards import Shard
from dpq_core.artifact.stream import ShardStream, payload
from dpq_core.errors import ArtifactError
from dpq_core.tensor.plan import Plan


class ArtifactWriter:
    """Writes ``<out>.partial/`` and renames it to ``out`` at the very end.

    Use it as a context manager: leaving it early releases the lock and keeps what is finished for
    ``resume``. Tensors are written in the order of the plan; each is in memory alone.

    Attributes:
        out: absolute path of the final folder.
        done: tensors that need not be computed again -> their relative error.
    """

    def __init__(
        self,
        out: str | Path,
        plan: Plan,
        *,
        adapter: str,
        source: str,
        fingerprint: str,
        weights: Mapping[str, str] = MappingProxyType({"": "model"}),
        data: Iterable[DataEntry] = (),
        shard_bytes: int = shards.SHARD_BYTES,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Lock ``<out>.partial``, new or resumed.

        Args:
            out: folder to write; must not exist, unless it is empty or ``overwrite`` is given.
            plan: what will be written, in this order.
            adapter: name for the manifest.
            source: what the user named as the source, for the manifest.
            fingerprint: hash of source and plan; a run with another one is not resumed.
            weights: component -> stem of its weight files, folders included (FORMAT.md, F3).
            data: what is read to make the artifact, for the manifest.
            shard_bytes: most data bytes of one weight file (a larger tensor gets its own).
            resume: continue where an earlier run stopped; a finished ``out`` is left as it is.
            overwrite: replace an artifact at ``out``; without ``resume``, start over.

        Raises:
            ArtifactError: ``out`` is in the way or locked, the earlier run was another one or its
                bytes changed, or the plan cannot be stored.
        """
        if shard_bytes < 1:
            raise ArtifactError(f"shard_bytes must be positive, not {shard_bytes}")
        self.out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow links
        self._partial = self.out.with_name(self.out.name + PARTIAL_SUFFIX)
        self._plans = {tensor.name: tensor for tensor in plan}
        self._order = tuple(self._plans)
        names = {"adapter": adapter, "source": source, "fingerprint": fingerprint}
        self._draft = draft(plan, **names, weights=weights, data=data)
        self._shards = shards.lay_out(plan, weights, shard_bytes)
        self._shard_of = {name: shard for shard in self._shards for name in shard.tensors}
        self._errors: dict[str, float | None] = {}
        self.done: Mapping[str, float | None] = MappingProxyType(self._errors)
        self._files: dict[str, FileEntry] = {}
        self._overwrite = overwrite
        self._journal: Journal | None = None
        self._stream: ShardStream | None = None
        self._whole: Artifact | None = None
        with writing(self._partial):
            self._enter(resume, overwrite)

    def _enter(self, resume: bool, overwrite: bool) -> None:
        place = workspace.enter(
            self.out, resume=resume, overwrite=overwrite, matches=self._is_result
        )
        if isinstance(place, Path):
            self._whole = self._take_over(place)
            manifest = self._whole.manifest
            self._errors.update((t.name, t.relative_error) for t in manifest.tensors)
            self._files.update(manifest.files)
            return
        self._journal = place
        try:
            identity = self._identity()
            finished = place.load(identity)
            if finished is None:
                finished = []
                place.start(identity)
            digest, complete = workspace.recover(self._partial, self._shards, finished)
        except BaseException:
            self.close()
            raise
        self._stream = ShardStream(self._partial, place, digest)
        self._files.update(complete)
        self._errors.update((line.name, line.relative_error) for line in finished)

    def _take_over(self, folder: Path) -> Artifact:
        """Open what an earlier run has finished, or could not rename before it was killed."""
        load(folder).verify()
        if folder == self._partial:
            publish(self._partial, self.out, replace=self._overwrite)
        else:
            clear(self.out)
        return Artifact.open(self.out)

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the bytes, in which a resumed run must agree."""
        layout = hashlib.sha256(self._draft.to_bytes())
        for shard in self._shards:
            layout.update(f"{shard.file}\n".encode() + shard.header)
        manifest = self._draft.to_json()
        keys = ("format_version", "adapter", "source", "fingerprint", "versions", "specs")
        return {**{key: manifest[key] for key in keys}, "layout": layout.hexdigest()}

    def _is_result(self, folder: Path) -> bool:
        """Whether ``folder`` is already the whole artifact that this run would write."""
        if not Artifact.is_artifact(folder):
            return False
        try:
            manifest = load(folder).manifest
        except ArtifactError:
            return False
        bare = tuple(replace(entry, relative_error=None) for entry in manifest.tensors)
        same = replace(manifest, tensors=bare, files={}) == self._draft
        return same and all(shard.file in manifest.files for shard in self._shards)

    def write(
        self, name: str, tensors: Mapping[str, Tensor], relative_error: float | None = None
    ) -> None:
        """Append one tensor of the model.

        Args:
            name: the first tensor of the plan that is not in ``done``.
            tensors: stored name -> tensor, as ``TensorPlan.stored()`` says.
            relative_error: for the manifest.

        Raises:
            ArtifactError: it is not the next tensor or not as planned, or the disk refused.
        """
        shard, stream = self._next(name)
        if relative_error is not None and not 0 <= relative_error < 1e300:
            raise ArtifactError(f"tensor {name!r}: its relative error is {relative_error}")
        views = payload(self._plans[name], shard, tensors)
        error = None if relative_error is None else float(relative_error)
        with writing(self._partial / shard.file):
            complete = stream.append(shard, name, views, error)
        self._errors[name] = error
        if complete is not None:
            self._files[shard.file] = complete

    def _next(self, name: str) -> tuple[Shard, ShardStream]:
        """The shard of ``name``, when this is the tensor to come."""
        if self._stream is None:
            raise ArtifactError(f"{self.out}: is finished; tensor {name!r} cannot be added")
        done = len(self._errors)
        expected = self._order[done] if done < len(self._order) else None
        if name != expected:
            raise ArtifactError(f"{self._partial}: tensor {name!r} came instead of {expected!r}")
        return self._shard_of[name], self._stream

    def add_file(self, relative: str, content: bytes | Path) -> None:
        """Write or copy a file beside the weights; ignored when an earlier run had finished.

        Raises:
            ArtifactError: an unsafe, reserved or repeated name, or the disk refused.
        """
        check_name(relative, str(self._partial))
        if self._whole is not None:
            return
        if relative in self._files or shards.is_weights(self._draft.weights, relative):
            raise ArtifactError(f"{self._partial}: file {relative!r} is written already")
        self._store(relative, content)

    def _store(self, relative: str, content: bytes | Path) -> None:
        path = self._partial / relative
        digest, size = hashlib.sha256(), 0
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for block in blocks(content):
                    file.write(block)
                    digest.update(block)
                    size += len(block)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(path.parent)
        self._files[relative] = FileEntry(size, digest.hexdigest())

    @property
    def manifest_draft(self) -> Manifest:
        """The manifest so far: with the errors and files of what is written."""
        errors = self._errors
        tensors = tuple(replace(t, relative_error=errors.get(t.name)) for t in self._draft.tensors)
        return replace(self._draft, tensors=tensors, files=dict(self._files))

    @property
    def nbytes(self) -> int:
        """Size of all weight files as planned and of the other files so far, in bytes."""
        weights = {shard.file: shard.nbytes for shard in self._shards}
        others = (entry.bytes for name, entry in self._files.items() if name not in weights)
        return sum(weights.values()) + sum(others)

    def preview(self) -> Artifact:
        """The artifact before it is finished, to load it; all tensors must be written.

        Raises:
            ArtifactError: tensors are missing, or the disk refused.
        """
        if self._whole is not None:
            return self._whole
        self._check_complete()
        self._store_rest()
        manifest = self.manifest_draft
        return assemble(self._partial, manifest, len(manifest.to_bytes()))

    def finish(self) -> Artifact:
        """Write index and manifest, and rename the folder to ``out``.

        Raises:
            ArtifactError: tensors are missing, or the disk refused.
        """
        if self._whole is not None:
            return self._whole
        if self._journal is None or self._stream is None:
            raise ArtifactError(f"{self._partial}: the writer is closed")
        self._check_complete()
        with writing(self._partial):
            self._stream.sync()
            self._store_rest()
            manifest = self.manifest_draft
            self._store(MANIFEST_NAME, manifest.to_bytes())
            # From here on the folder is whole: without a journal, a resumed run only renames it.
            self._journal.path.unlink()
            sync_folder(self._partial)
            publish(self._partial, self.out, replace=self._overwrite)
        self.close()
        return Artifact.open(self.out)

    def _check_complete(self) -> None:
        if len(self._errors) < len(self._order):
            first = self._order[len(self._errors)]
            raise ArtifactError(f"{self._partial}: tensor {first!r} was not written")

    def _store_rest(self) -> None:
        """Write the indexes of several shards, and empty shards of components without tensors."""
        for component, stem in self._draft.weights.items():
            own_shards = [shard for shard in self._shards if shard.component == component]
            name = stem + shards.INDEX_SUFFIX
            if len(own_shards) > 1 and name not in self._files:
                self._store(name, shards.index_bytes(own_shards))
            if not own_shards[0].tensors:
                self._store(own_shards[0].file, own_shards[0].header)

    def close(self) -> None:
        """Release the lock; finished tensors stay for ``resume``. Harmless when repeated."""
        if self._stream is not None:
            # What cannot be journalled now is computed again; the first error is the one to show.
            with contextlib.suppress(OSError):
                self._stream.sync()
            self._stream = None
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self.close()
