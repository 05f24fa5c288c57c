"""Files that appear only once they are whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from dpq_core.errors import SourceError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Another name beside ``path`` to write to; it becomes ``path`` where the block succeeds.

    Raises:
        SourceError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{path}: cannot be written ({reason})") from None
    finally:
        with contextlib.suppress(OSError):  # there is none after success
            partial.unlink()
