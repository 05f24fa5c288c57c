"""Results of measurements on disk, each under a fingerprint of everything it depends on.

A record is one JSON file named after the sha256 of its key. The key holds what was measured and
how: the contents of the sources, the adapter with its options, the seed, the device, the versions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpq_core import device as devices
from dpq_core.errors import ArtifactError
from dpq_core.plugin.builtin import BUILTIN_SCHEME
from dpq_core.run import Run
from dpq_core.version import __version__

_VERSION = 2
"""Version of the records; others are computed again."""

_WHOLE = 1 << 20
"""Files up to this many bytes are hashed whole; larger ones by size, time and first bytes."""


def default_folder() -> Path:
    """The folder for results in the user's cache, below ``XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dpq" / "results"


@dataclass(frozen=True)
class Results:
    """Results that are kept in a folder and read back while nothing they depend on has changed.

    Attributes:
        folder: the folder of the records.
        fresh: whether everything is computed again, whatever there is.
    """

    folder: Path
    fresh: bool = False

    def get(
        self, key: Mapping[str, Any] | None, make: Callable[[], dict[str, Any]]
    ) -> tuple[dict[str, Any], bool]:
        """A kept result and True, or a new one and False.

        Args:
            key: everything that the result depends on, as plain JSON values; None keeps nothing.
            make: computes the result, plain JSON values.
        """
        if key is None:
            return make(), False
        text = json.dumps(key, sort_keys=True, default=str)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
        if not self.fresh and (kept := _read(path)) is not None:
            return kept, True
        record = {"version": _VERSION, "key": key, "result": make()}
        text = json.dumps(record, indent=1, default=str)
        _write(path, text)
        plain: dict[str, Any] = json.loads(text)["result"]
        return plain, False


def _write(path: Path, text: str) -> None:
    """Keep a record; where the disk refuses, it is computed again the next time."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()


def _read(path: Path) -> dict[str, Any] | None:
    """The result of a record; None where there is no whole record of this version."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("version") != _VERSION:
        return None
    result = record.get("result")
    return result if isinstance(result, dict) else None


def measurement_key(
    adapter: str, sources: Mapping[str, str], options: Any, run: Run
) -> dict[str, Any] | None:
    """The key of a measurement; None where a source is not on this machine, such as a hub id.

    Args:
        adapter: name of the adapter that measures.
        sources: role -> artifact or uncompressed source; an empty text is no source.
        options: the adapter's options, a dataclass whose texts may name files; None for none.
        run: device and seed.
    """
    import torch

    contents = {role: fingerprint(source) for role, source in sources.items() if source}
    if None in contents.values():
        return None
    values = {} if options is None else dataclasses.asdict(options)
    for name, value in values.items():
        items = value if isinstance(value, list | tuple) else (value,)
        for i, item in enumerate(items):
            if isinstance(item, str | Path) and str(item) and Path(item).exists():
                contents[f"{name} {i}"] = fingerprint(str(item))
    return {
        "adapter": adapter,
        "sources": contents,
        "options": values,
        "seed": run.seed,
        "device": str(devices.resolve(run.device)),
        "dpq": __version__,
        "torch": torch.__version__,
    }


def fingerprint(source: str) -> str | None:
    """The sha256 of what tells that a source has changed; None where it is not on this machine.

    These are the names, sizes and times of change of its files, the contents of small ones, and the
    first bytes of large ones.

    Raises:
        ArtifactError: a file cannot be read.
    """
    if source.startswith(BUILTIN_SCHEME):
        return hashlib.sha256(f"{source} {__version__}".encode()).hexdigest()
    path = Path(source).expanduser()
    if not path.exists():
        return None
    digest = hashlib.sha256()
    try:
        for file in _files(path):
            state = file.stat()
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            digest.update(json.dumps([name, state.st_size, state.st_mtime_ns]).encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_WHOLE))
    except OSError as error:
        raise ArtifactError(f"{error.filename}: {error.strerror}") from None
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or the files below a folder in the order of their names."""
    if path.is_file():
        yield path
    else:
        yield from sorted(file for file in path.rglob("*") if file.is_file())
