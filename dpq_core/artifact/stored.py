"""The protocols that artifacts of both forms follow: folders of tensors, and single files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from dpq_core.run import Progress, silent


class StoredManifest(Protocol):
    """The fields that every manifest has.

    Attributes:
        adapter: name of the adapter that made the artifact.
        source: the uncompressed model from which it was made.
        versions: library -> version at the time of writing.
    """

    @property
    def adapter(self) -> str: ...  # noqa: D102  # see the class

    @property
    def source(self) -> str: ...  # noqa: D102

    @property
    def versions(self) -> Mapping[str, str]: ...  # noqa: D102


class StoredModel(Protocol):
    """An opened artifact whose contents are not read yet.

    Attributes:
        path: its folder, or its file.
        nbytes: size of all its files on disk, in bytes.
        manifest: its manifest.
    """

    path: Path
    nbytes: int

    @property
    def manifest(self) -> StoredManifest: ...  # noqa: D102

    def problems(self, progress: Progress = silent) -> list[str]:
        """The problems of the artifact, one line each, after reading every byte; or none."""

    def verify(self, progress: Progress = silent) -> None:
        """Check every byte of the artifact.

        Raises:
            ArtifactError: the first of ``problems()``.
        """
