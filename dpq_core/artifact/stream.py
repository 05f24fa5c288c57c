"""ShardStream: tensor bytes are written to shards, hashed, made durable and then journalled."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from dpq_core.artifact import header
from dpq_core.artifact.entries import FileEntry
from dpq_core.artifact.files import sync_folder, write_all
from dpq_core.artifact.journal import Finished, Journal
from dpq_core.artifact.shards import Shard
from dpq_core.artifact.strict_json import one_line
from dpq_core.errors import ArtifactError
from dpq_core.tensor.plan import TensorPlan
from dpq_core.tensor.pq_tensor import PQTensor

SYNC_BYTES = 64 << 20
SYNC_SECONDS = 0.5
"""Data is made durable, and journalled, after so many bytes or seconds: a killed run loses at most
half a second of finished work, and small tensors do not cost one fsync each."""


def payload(plan: TensorPlan, shard: Shard, tensors: Mapping[str, Tensor]) -> list[memoryview]:
    """The bytes to write for one tensor of the plan, after checking that a reader accepts them.

    Raises:
        ArtifactError: other tensors than planned, or values that no reader would accept.
    """
    slots = shard.tensors[plan.name]
    if set(tensors) != {slot.name for slot in slots}:
        raise ArtifactError(f"tensor {plan.name!r}: parts {sorted(tensors)} are not as planned")
    for slot in slots:
        tensor = tensors[slot.name]
        if (tensor.dtype, tuple(tensor.shape)) != (slot.dtype, slot.shape):
            raise ArtifactError(
                f"tensor {slot.name!r} is {tensor.dtype} {list(tensor.shape)}, planned was "
                f"{slot.dtype} {list(slot.shape)}"
            )
    if plan.partition is not None and plan.spec is not None:
        parts = {name[len(plan.name) + 1 :]: tensor for name, tensor in tensors.items()}
        try:
            PQTensor.from_parts(plan.partition, plan.spec, plan.info.dtype, parts)
        except ArtifactError as error:
            raise ArtifactError(f"tensor {plan.name!r}: {one_line(error)}") from None
    return [header.tensor_bytes(tensors[slot.name]) for slot in slots]


class ShardStream:
    """Appends tensors to the shards of one ``<out>.partial``, in the order of the plan.

    A tensor may be written again after a failure: nothing is counted before it is complete.
    """

    def __init__(self, folder: Path, journal: Journal, digest: hashlib._Hash) -> None:
        """Continue after the bytes that ``digest`` (sha256 of the last shard so far) has hashed."""
        self._folder = folder
        self._journal = journal
        self._digest = digest
        self._pending: list[Finished] = []
        self._unsynced, self._synced_at = 0, time.monotonic()

    def append(
        self, shard: Shard, name: str, views: Sequence[memoryview], error: float | None
    ) -> FileEntry | None:
        """Write one tensor; returns the shard's entry when this was its last.

        Raises:
            OSError: the file system refused; the tensor is not counted.
        """
        path = self._folder / shard.file
        if name == next(iter(shard.tensors)):
            self._begin(path, shard.header)
        with path.open("r+b", buffering=0) as file:
            file.seek(len(shard.header) + shard.tensors[name][0].begin)
            for view in views:
                write_all(file.fileno(), view)
        for view in views:
            self._digest.update(view)
        end, sha256 = shard.end(name), self._digest.hexdigest()
        self._pending.append(Finished(name, shard.file, end, sha256, error))
        self._unsynced += sum(view.nbytes for view in views)
        last = name == next(reversed(shard.tensors))
        waited = time.monotonic() - self._synced_at
        if last or self._unsynced >= SYNC_BYTES or waited >= SYNC_SECONDS:
            self.sync()
        return FileEntry(end, sha256) if last else None

    def _begin(self, path: Path, header: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(header)
        sync_folder(path.parent)
        sync_folder(self._folder)
        self._digest = hashlib.sha256(header)

    def sync(self) -> None:
        """Make the current shard durable, and then journal its tensors.

        Raises:
            OSError: the file system refused.
        """
        if self._pending:
            path = self._folder / self._pending[-1].shard  # earlier shards were synced at their end
            with path.open("r+b", buffering=0) as file:
                os.fsync(file.fileno())
            self._journal.append(self._pending)
        self._pending = []
        self._unsynced, self._synced_at = 0, time.monotonic()
