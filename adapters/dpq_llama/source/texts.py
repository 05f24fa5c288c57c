"""The text of files, gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from dpq_core.errors import SourceError


def read_text(path: Path) -> str:
    """The content of a UTF-8 file; a file that ends in ``.gz`` is unpacked.

    Raises:
        SourceError: the file is missing, damaged or not UTF-8 text.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read().decode("utf-8")
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise SourceError(f"{path}: not UTF-8 text") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "damaged .gz"
        raise SourceError(f"{path}: cannot read the text ({reason})") from None
