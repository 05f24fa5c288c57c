"""Zip archives are believed no more than they can hold."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile

import pytest

from dpq_core.artifact.zip_members import DEFLATE_RATIO, open_member

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def written(path, data, method=DEFLATED):
    with zipfile.ZipFile(path, "w", method, compresslevel=9) as archive:
        archive.writestr("member", data)
    return path


def claiming(path, packed, unpacked):
    """The same archive, whose directory claims other sizes for its member."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<II", content, content.rindex(b"PK\x01\x02") + 20, packed, unpacked)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("method", [STORED, DEFLATED])
@pytest.mark.parametrize("data", [b"", bytes(range(256)), bytes(1 << 20)], ids=len)
def test_what_was_written_is_read(tmp_path, data, method):
    with zipfile.ZipFile(written(tmp_path / "a.zip", data, method)) as archive:
        assert open_member(archive, "member").read() == data


def test_nothing_deflates_to_more_than_is_believed(tmp_path):
    path = written(tmp_path / "a.zip", bytes(1 << 24))
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("member")
        assert 0.98 * DEFLATE_RATIO < member.file_size / member.compress_size < DEFLATE_RATIO


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
def test_other_methods_are_refused(tmp_path, method):
    """Python's bzip2 and LZMA members unpack whole blocks, whatever was asked for."""
    with (
        zipfile.ZipFile(written(tmp_path / "a.zip", b"x", method)) as archive,
        pytest.raises(zipfile.BadZipFile, match="member is neither stored nor deflated"),
    ):
        open_member(archive, "member")


@pytest.mark.parametrize(
    ("packed", "unpacked"),
    [(4, 4 * DEFLATE_RATIO + 1), (2**31, 2**31), (2**31, 10)],
    ids=["ratio", "both", "packed"],
)
def test_claims_beyond_the_archive_are_refused_before_anything_is_allocated(
    tmp_path, packed, unpacked
):
    path = claiming(written(tmp_path / "a.zip", bytes(1000)), packed, unpacked)
    tracemalloc.start()
    try:
        with (
            zipfile.ZipFile(path) as archive,
            pytest.raises(zipfile.BadZipFile, match="more than its archive can hold"),
        ):
            open_member(archive, "member").read(2**30)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_archive_in_memory_is_measured_too(tmp_path):
    path = claiming(written(tmp_path / "a.zip", bytes(1000)), 2**20, 2**20)
    with (
        zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive,
        pytest.raises(zipfile.BadZipFile, match="more than its archive can hold"),
    ):
        open_member(archive, "member")


def test_a_missing_member_is_named(tmp_path):
    with (
        zipfile.ZipFile(written(tmp_path / "a.zip", b"")) as archive,
        pytest.raises(KeyError, match="other"),
    ):
        open_member(archive, "other")
