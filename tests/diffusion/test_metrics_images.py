"""Sets of images: what is read, what is refused, and what the ADM evaluator will find."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dpq_core.errors import ArtifactError, SourceError
from dpq_diffusion.sampling.images import ArrayImages, NpzImages, PngFolder, write_npz


def pictures(n=5, height=6, width=4, channels=3):
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def joined(images, size=2):
    return torch.cat(list(images.batches(size)))


def save_pngs(folder, array):
    folder.mkdir()
    for index, image in enumerate(array):
        Image.fromarray(image).save(folder / f"{index:06d}.png")


def raw_npz(path, entries):
    """An archive with the given bytes per member."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def npy(array, **fields):
    """The bytes of a .npy file, with header fields replaced."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream,
        {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | fields,
    )
    return stream.getvalue() + array.tobytes()


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_every_kind_gives_the_same_images(tmp_path, size):
    array = pictures()
    save_pngs(tmp_path / "pngs", array)
    np.savez(tmp_path / "stored.npz", array)
    np.savez_compressed(tmp_path / "deflated.npz", arr_0=array, arr_1=np.arange(5))
    kinds = [
        ArrayImages(array),
        ArrayImages(torch.from_numpy(array)),
        PngFolder(tmp_path / "pngs"),
        *(NpzImages(tmp_path / n) for n in ("stored.npz", "deflated.npz")),
    ]
    for images in kinds:
        assert (len(images), images.size) == (5, (6, 4))
        assert [len(b) for b in images.batches(size)] == [
            min(size, 5 - i) for i in range(0, 5, size)
        ]
        for _ in range(2):  # any number of times
            assert torch.equal(joined(images, size), torch.from_numpy(array))


def test_grey_images_get_three_equal_channels(tmp_path):
    grey = pictures(channels=1)
    save_pngs(tmp_path / "pngs", grey[..., 0])
    expected = torch.from_numpy(grey).expand(-1, -1, -1, 3)
    for images in (ArrayImages(grey), PngFolder(tmp_path / "pngs")):
        assert torch.equal(joined(images), expected)


def test_the_written_batch_is_what_numpy_and_the_adm_evaluator_read(tmp_path):
    array = pictures(7)
    seen = []
    path = tmp_path / "new" / "samples.npz"
    write_npz(
        path,
        ArrayImages(array),
        batch_size=3,
        progress=lambda what, done, total: seen.append((done, total)),
    )
    with np.load(path, allow_pickle=False) as stored:
        assert stored.files == ["arr_0"]
        assert stored["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(stored["arr_0"], array)
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert torch.equal(joined(NpzImages(path)), torch.from_numpy(array))
    again = tmp_path / "again.npz"
    write_npz(again, ArrayImages(array), batch_size=2)
    assert again.read_bytes() == path.read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path):
    class Broken(ArrayImages):
        def batches(self, size):
            yield from super().batches(size)
            raise SourceError("the last image is damaged")

    with pytest.raises(SourceError, match="the last image is damaged"):
        write_npz(tmp_path / "samples.npz", Broken(pictures()))
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot write"):
        write_npz(tmp_path / "file" / "samples.npz", ArrayImages(pictures()))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pictures()[0], r"shape [6, 4, 3]; expected [N, height, width, channels]"),
        (pictures(channels=4), "1 or 3 channels"),
        (pictures().transpose(0, 3, 1, 2), "1 or 3 channels"),
        (pictures() / 255, "dtype float64; expected uint8"),
        (pictures().astype(np.int16), "dtype int16; expected uint8"),
        (pictures()[:0], "holds no images"),
    ],
    ids=["rank", "alpha", "channels-first", "float", "int16", "empty"],
)
def test_arrays_of_another_kind(tmp_path, array, message):
    np.savez(tmp_path / "wrong.npz", np.ascontiguousarray(array))
    for opened in (lambda: ArrayImages(array), lambda: NpzImages(tmp_path / "wrong.npz")):
        with pytest.raises(SourceError, match=re.escape(message)):
            opened()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"arr_1.npy": npy(pictures())}, "holds no images ('arr_0'), only arr_1"),
        ({}, "holds no images ('arr_0'), only nothing"),
        ({"arr_0.npy": b"not numpy at all"}, "not a readable .npz file"),
        ({"arr_0.npy": npy(pictures())[:-1]}, "360 bytes, but 359 are stored"),
        ({"arr_0.npy": npy(pictures(), shape=(10**9, 64, 64, 3))}, "but 360 are stored"),
        ({"arr_0.npy": npy(pictures(), shape=(-5, 6, 4, 3))}, "are stored"),
        ({"arr_0.npy": npy(pictures(), fortran_order=True)}, "Fortran order; save numpy.asco"),
        ({"arr_0.npy": npy(pictures(), descr="|O")}, "Python objects, which are never unpickled"),
        ({"arr_0.npy": npy(pictures(), descr="__import__('os')")}, "not a readable .npz file"),
        (
            {"arr_0.npy": npy(np.zeros(0, np.uint8), shape=(0, 6, 4, 3))},
            "shape [0, 6, 4, 3] holds no images",
        ),
        ({"arr_0.npy": npy(pictures()).replace(b"NUMPY\x01", b"NUMPY\x07", 1)}, "version 7.0"),
    ],
    ids=[
        "other-name",
        "empty",
        "garbage",
        "short",
        "huge",
        "negative",
        "fortran",
        "pickle",
        "code",
        "no-images",
        "version",
    ],
)
def test_hostile_batches(tmp_path, entries, message):
    path = tmp_path / "batch.npz"
    raw_npz(path, entries)
    with pytest.raises(SourceError, match=re.escape(message)) as caught:
        NpzImages(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_damaged_archives(tmp_path):
    path = tmp_path / "batch.npz"
    np.savez_compressed(path, arr_0=pictures(200))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"not a readable \.npz file"):
        NpzImages(path)
    path.write_bytes(whole)
    images = NpzImages(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    with pytest.raises(SourceError, match=r"batch\.npz: not a readable \.npz file"):
        joined(images)
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        joined(images)


def test_claims_and_methods_that_an_archive_cannot_hold(tmp_path):
    array = np.zeros((50, 64, 64, 3), np.uint8)
    path = tmp_path / "batch.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("arr_0.npy", npy(array))
    with pytest.raises(SourceError, match=r"npz file \(arr_0\.npy is neither stored nor deflated"):
        NpzImages(path)
    raw_npz(path, {"arr_0.npy": npy(array[:1], shape=(90_000, 64, 64, 3))})
    content = bytearray(path.read_bytes())
    size = array[:1].nbytes * 90_000 + len(npy(array[:0]))  # as the array's header says
    struct.pack_into("<II", content, content.rindex(b"PK\x01\x02") + 20, size, size)
    path.write_bytes(content)
    with pytest.raises(SourceError, match="more than its archive can hold"):
        NpzImages(path)


def test_a_picture_claims_no_more_pixels_than_its_bytes_can_hold(tmp_path):
    folder = tmp_path / "pngs"
    save_pngs(folder, np.zeros((1, 2000, 3000), np.uint8) != 0)  # one bit per pixel, all black
    (path,) = folder.iterdir()
    assert path.stat().st_size < 2000
    assert joined(PngFolder(folder)).shape == (1, 2000, 3000, 3)
    content = bytearray(path.read_bytes())
    struct.pack_into(">I", content, 16, 16_000)  # its width
    struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"000000\.png: claims 16000x2000 pixels, more than"):
        joined(PngFolder(folder))


def test_a_consumers_error_passes_through(tmp_path):
    """The generator translates its own errors only."""
    np.savez(tmp_path / "batch.npz", pictures())
    images = NpzImages(tmp_path / "batch.npz")

    def consume():
        for _ in images.batches(2):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        consume()


def test_folders(tmp_path):
    with pytest.raises(SourceError, match="no such folder of images"):
        PngFolder(tmp_path / "absent")
    with pytest.raises(SourceError, match=r"holds no \.png files"):
        PngFolder(tmp_path)


def test_images_of_a_folder_are_checked(tmp_path):
    folder = tmp_path / "pngs"
    save_pngs(folder, pictures(3))
    Image.fromarray(pictures(1, 8, 8)[0]).save(folder / "000003.png")
    with pytest.raises(SourceError, match=r"000003\.png: 8x8 pixels, but 000000\.png has 6x4"):
        joined(PngFolder(folder))
    (folder / "000003.png").write_bytes((folder / "000000.png").read_bytes()[:60])
    with pytest.raises(SourceError, match=r"000003\.png: not a readable PNG"):
        joined(PngFolder(folder))
    Image.fromarray(np.zeros((6, 4), np.uint16)).save(folder / "000003.png")
    with pytest.raises(SourceError, match=r"000003\.png: mode I;16; save 8-bit RGB or grey"):
        joined(PngFolder(folder))
    Image.fromarray(pictures(1)[0]).save(folder / "jpeg.jpg")
    (folder / "jpeg.jpg").rename(folder / "000003.png")
    with pytest.raises(SourceError, match=r"000003\.png: not a readable PNG"):
        joined(PngFolder(folder))
