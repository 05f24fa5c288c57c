"""What artifacts of both forms answer: a folder of tensors, and a single file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from dpq_core.run import Progress, silent


class StoredManifest(Protocol):
    """What every manifest says.

    Attributes:
        adapter: name of the adapter that the artifact was made with.
        source: the uncompressed model that it was made of.
        versions: library -> version, at the time of writing.
    """

    @property
    def adapter(self) -> str: ...  # noqa: D102  # see the class

    @property
    def source(self) -> str: ...  # noqa: D102

    @property
    def versions(self) -> Mapping[str, str]: ...  # noqa: D102


class StoredModel(Protocol):
    """An opened artifact, checked but for its contents.

    Attributes:
        path: its folder, or its file.
        nbytes: bytes on disk of everything that belongs to it.
        manifest: what it holds.
    """

    path: Path
    nbytes: int

    @property
    def manifest(self) -> StoredManifest: ...  # noqa: D102

    def problems(self, progress: Progress = silent) -> list[str]:
        """Read every byte: what is wrong, one line each; empty if the artifact is whole."""

    def verify(self, progress: Progress = silent) -> None:
        """Read every byte.

        Raises:
            ArtifactError: the first of ``problems()``.
        """
