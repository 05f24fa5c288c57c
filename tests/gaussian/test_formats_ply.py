"""The Inria .ply: variants that are read, what they say, and what is refused."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from splat_files import columns, make_scene, write_ply

from dpq_core.errors import SourceError
from dpq_gaussian.formats import read_scene, write_scene

BODY = b"\0" * 4096


def same(a, b) -> bool:
    return all(np.array_equal(x, b.arrays()[name]) for name, x in a.arrays().items())


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_written_scene_is_read_back_bit_for_bit(tmp_path, degree):
    scene = make_scene(degree=degree)
    write_scene(scene, tmp_path / "a.ply", "ply")
    loaded = read_scene(tmp_path / "a.ply")
    assert (loaded.format, loaded.notes, loaded.antialiased) == ("ply", (), False)
    assert loaded.ignored == ("nx", "ny", "nz")
    assert same(scene, loaded.scene)


def test_the_written_file_is_the_one_of_the_inria_code(tmp_path):
    scene = make_scene()
    write_scene(scene, tmp_path / "ours.ply", "ply")
    write_ply(tmp_path / "theirs.ply", columns(scene))
    assert (tmp_path / "ours.ply").read_bytes() == (tmp_path / "theirs.ply").read_bytes()


def test_reading_maps_the_file_and_copies_nothing(tmp_path):
    path = write_ply(tmp_path / "a.ply", columns(make_scene(1000)))
    for name, array in read_scene(path).scene.arrays().items():
        base = array
        while base.base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap), name
        assert array.strides[0] == 248, name
        assert not array.flags.writeable, name


def test_opening_a_large_scene_costs_no_memory(tmp_path):
    path = write_ply(tmp_path / "a.ply", columns(make_scene(20_000)))
    read_scene(path)  # imports
    tracemalloc.start()
    loaded = read_scene(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(loaded.scene) == 20_000  # 5 MB
    assert peak < 1 << 19  # beyond the header, which is looked for in the first MB


@pytest.mark.parametrize(
    "how",
    [
        {"byte_order": ">"},
        {"text": True},
        {"kind": "f8"},
        {"kind": "f8", "byte_order": ">"},
        {"kind": "f8", "text": True},
    ],
    ids=str,
)
def test_encodings(tmp_path, how):
    scene = make_scene(degree=2)
    assert same(scene, read_scene(write_ply(tmp_path / "a.ply", columns(scene), **how)).scene)


def test_properties_in_any_order(tmp_path):
    scene = make_scene()
    values = list(columns(scene).items())
    for seed in range(3):
        np.random.default_rng(seed).shuffle(values)
        assert same(scene, read_scene(write_ply(tmp_path / "a.ply", dict(values))).scene)


def test_reversed_and_interleaved_properties_are_still_views(tmp_path):
    scene = make_scene()
    reverse = dict(reversed(columns(scene).items()))
    found = read_scene(write_ply(tmp_path / "a.ply", reverse)).scene
    assert same(scene, found)
    assert found.positions.strides == (248, -4)


def test_normals_may_be_missing(tmp_path):
    scene = make_scene()
    values = {k: v for k, v in columns(scene).items() if k not in ("nx", "ny", "nz")}
    loaded = read_scene(write_ply(tmp_path / "a.ply", values))
    assert same(scene, loaded.scene)
    assert loaded.ignored == ()


def test_extra_properties_and_elements_are_reported(tmp_path):
    from plyfile import PlyElement

    scene = make_scene()
    values = columns(scene) | {"red": np.full(50, 7, dtype=np.uint8), "mass": scene.positions[:, 0]}
    camera = PlyElement.describe(np.zeros(2, dtype=[("focal", "f4")]), "camera")
    empty = PlyElement.describe(np.zeros(0, dtype=[("vertex_indices", "O")]), "face")
    path = write_ply(tmp_path / "a.ply", values, more=(camera, empty))
    loaded = read_scene(path)
    assert same(scene, loaded.scene)  # one byte more per row: unaligned views
    assert loaded.ignored == ("nx", "ny", "nz", "red", "mass", "element camera", "element face")
    assert loaded.notes == (
        "left out what is not part of a splat scene: red, mass, element camera, element face",
    )


@pytest.mark.parametrize(
    ("comment", "marked"),
    [
        ("SplatRenderMode: mip", True),
        ("SplatRenderMode: default", False),
        ("antialiased 1", True),
        ("antialiased 0", False),
        ("made by hand", False),
    ],
)
def test_the_mark_of_antialiased_scenes(tmp_path, comment, marked):
    path = write_ply(tmp_path / "a.ply", columns(make_scene()))
    path.write_bytes(path.read_bytes().replace(b"element", f"comment {comment}\nelement".encode()))
    assert read_scene(path).antialiased is marked


def test_the_mark_is_written(tmp_path):
    scene = make_scene()
    write_scene(scene, tmp_path / "a.ply", "ply", antialiased=True)
    loaded = read_scene(tmp_path / "a.ply")
    assert loaded.antialiased
    assert same(scene, loaded.scene)


def header(*lines: str, body: bytes = BODY, form: str = "binary_little_endian") -> bytes:
    return "\n".join(["ply", f"format {form} 1.0", *lines, "end_header", ""]).encode() + body


def vertices(count: object, names=None, kind: str = "float") -> list[str]:
    names = list(columns(make_scene(1))) if names is None else names
    return [f"element vertex {count}", *(f"property {kind} {name}" for name in names)]


WITHOUT_ROTATION = [name for name in columns(make_scene(1)) if not name.startswith("rot")]
ODD_REST = [name for name in columns(make_scene(1)) if name != "f_rest_44"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(*vertices(10**12)), "promises 1,000,000,000,000 of vertex, at least 248"),
        (header(*vertices(10**12), form="ascii"), "promises 1,000,000,000,000 of vertex"),
        (header(*vertices(10**400)), "malformed .ply header line 'element vertex 1000"),
        (header(*vertices(17)), "at least 4,216 bytes, but 4,096 follow"),
        (header(*vertices(-1)), "malformed .ply header line 'element vertex -1'"),
        (header(*vertices("many")), "malformed .ply header line 'element vertex many'"),
        (header(*vertices(0), body=b""), "holds no Gaussians"),
        (header(*vertices(3, "xyz")), "lacks the properties scale_0, scale_1, scale_2, rot_0"),
        (header(*vertices(3, WITHOUT_ROTATION)), "lacks the properties rot_0, rot_1, rot_2, rot_3"),
        (header(*vertices(3, ODD_REST)), "44 f_rest properties; a scene has f_rest_0"),
        (header(*vertices(3, kind="short")), "quantized properties are not supported: short x"),
        (header(*vertices(3), "property float x"), "malformed .ply header line 'property float x'"),
        (header(*vertices(3), "property list uchar int more"), "list properties in vertex"),
        (
            header(*vertices(3), "element face 2", "property list uchar int vertex_indices"),
            "a mesh (2 faces), not a splat scene",
        ),
        (header("element point 3", "property float x"), "has no vertex element"),
        (header(*vertices(3), form="binary"), ".ply format 'binary' is not one of ascii"),
        (header(*vertices(3), "surprise"), "malformed .ply header line 'surprise'"),
        (header(*vertices(3), "property quad y"), "malformed .ply header line"),
        (b"ply\nformat ascii 1.0\nelement vertex 3\n", "header does not end"),
        (b"ply\n" + b"comment x\n" * 200_000, "header does not end"),
        (header(*vertices(2), body=b"x " * 200, form="ascii"), "not a readable .ply file"),
    ],
)
def test_what_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "bad.ply"
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        read_scene(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("how", [{}, {"byte_order": ">"}, {"text": True}], ids=str)
def test_truncations_are_refused(tmp_path, how):
    path = write_ply(tmp_path / "a.ply", columns(make_scene(3, degree=0)), **how)
    whole = path.read_bytes()
    # The last number of a text stays a number when it loses digits.
    last = whole.rstrip().rfind(b" ") if how.get("text") else len(whole) - 1
    for length in range(3, last + 1, 5 if how.get("text") else 2):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError):
            read_scene(path)
