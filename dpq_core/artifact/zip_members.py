"""Members of untrusted zip archives, opened only if their sizes are possible."""

from __future__ import annotations

import os
import zipfile
from typing import IO

DEFLATE_RATIO = 1032
"""Most bytes that one byte of deflate can become: a match of 258 bytes takes two bits."""

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Allowed methods; the others allocate what a member claims, or unpack without a limit."""


def open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a member after checking that its claimed sizes fit into the archive.

    Raises:
        KeyError: there is no such member.
        zipfile.BadZipFile: it is packed by another method than zip's two common ones, or claims
            more bytes than the archive has, or than these can become.
    """
    member = archive.getinfo(name)
    if member.compress_type not in METHODS:
        raise zipfile.BadZipFile(f"{name} is neither stored nor deflated")
    most = member.compress_size
    if member.compress_type == zipfile.ZIP_DEFLATED:
        most *= DEFLATE_RATIO
    if member.compress_size > _size(archive) or member.file_size > most:
        raise zipfile.BadZipFile(
            f"{name} claims {member.file_size:,} bytes, more than its archive can hold"
        )
    return archive.open(member)


def _size(archive: zipfile.ZipFile) -> int:
    """Size in bytes of the file of an archive."""
    file = archive.fp
    if file is None:
        raise zipfile.BadZipFile("the archive is closed")
    at = file.tell()
    try:
        return file.seek(0, os.SEEK_END)
    finally:
        file.seek(at)
