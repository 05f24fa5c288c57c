"""Local sources: paths, and the models that ship with an adapter (``builtin:NAME``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpq_core.errors import SourceError
from dpq_core.nearest import nearest

BUILTIN_SCHEME = "builtin:"
"""Prefix of a source that names a model shipped with an adapter."""


def find_local(source: str, builtin: Path, marker: str) -> Path | None:
    """The folder or file of a source on this machine; None where there is none.

    Args:
        source: ``builtin:NAME``, a path, or anything else.
        builtin: folder of the models that ship with an adapter, each in its own folder.
        marker: name of a file that each of them has.

    Raises:
        SourceError: there is no such builtin model.
        ArtifactError: the source is a half-written artifact.
    """
    from dpq_core.artifact import Artifact
    from dpq_core.artifact.files import PARTIAL_SUFFIX

    if source.startswith(BUILTIN_SCHEME):
        name = source.removeprefix(BUILTIN_SCHEME)
        names = sorted(path.parent.name for path in builtin.glob(f"*/{marker}"))
        if name not in names:
            raise _unknown_builtin(name, names)
        return builtin / name
    path = Path(source).expanduser()
    if not path.is_dir() and path.with_name(path.name + PARTIAL_SUFFIX).is_dir():
        Artifact.open(path)  # raises: half-written
    return path if path.exists() else None


def _unknown_builtin(name: str, names: Sequence[str]) -> SourceError:
    """The error for ``builtin:name``: the nearest of ``names``, then all of them."""
    sources = [f"{BUILTIN_SCHEME}{model}" for model in names]
    hint = nearest(f"{BUILTIN_SCHEME}{name}", sources, most=1, cutoff=0.7)
    return SourceError(
        f"no builtin model {name!r}; {hint}available: " + (", ".join(sources) or "none")
    )
