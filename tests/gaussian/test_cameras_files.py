"""Cameras out of files: the same camera in every format, and one line for every bad file."""

from __future__ import annotations

import contextlib
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from render_scenes import ahead, camera
from splat_files import SPLATS
from strategies import changes, damaged

from dpq_core.errors import SourceError
from dpq_gaussian.cameras import held_out, read_cameras, select

PHOTOS = SPLATS / "miku_scene"


def quaternion(rotation):
    """w, x, y, z of a rotation, for any but half turns."""
    w = math.sqrt(1 + np.trace(rotation)) / 2
    x, y, z = (
        rotation[2, 1] - rotation[1, 2],
        rotation[0, 2] - rotation[2, 0],
        rotation[1, 0] - rotation[0, 1],
    )
    return [w, x / 4 / w, y / 4 / w, z / 4 / w]


def lenses(names):
    """Random cameras; COLMAP's quaternions above want no half turn."""
    found = (camera(seed, name=f"{seed:03d}.png") for seed in range(100))
    return [view for view in found if np.trace(view.rotation) > -0.9][:names]


def write_inria(folder, views):
    entries = [
        {
            "id": at,
            "img_name": view.name,
            "width": view.width,
            "height": view.height,
            "position": view.centre.tolist(),
            "rotation": view.rotation.T.tolist(),
            "fx": view.fx,
            "fy": view.fy,
        }
        for at, view in enumerate(views)
    ]
    (folder / "cameras.json").write_text(json.dumps(entries))


def write_frames(folder, views):
    first = views[0]
    content = {key: getattr(first, key) for key in ("width", "height", "fx", "fy", "cx", "cy")}
    content["frames"] = [
        {"name": v.name, "w2c": np.c_[v.rotation, v.translation].tolist()} for v in views
    ]
    (folder / "cameras.json").write_text(json.dumps(content))


def write_transforms(folder, views, **more):
    frames = []
    for view in views:
        matrix = np.eye(4)
        matrix[:3, :3] = view.rotation.T * (1, -1, -1)  # y up, looking along -z
        matrix[:3, 3] = view.centre
        frames.append(
            {
                "file_path": f"./{view.name}",
                "transform_matrix": matrix.tolist(),
                **{"w": view.width, "h": view.height, "cx": view.cx, "cy": view.cy},
                **{"fl_x": view.fx, "fl_y": view.fy},
            }
        )
    (folder / "transforms.json").write_text(json.dumps({**more, "frames": frames}))


def write_colmap_text(folder, views, model="PINHOLE {fx!r} {fy!r} {cx!r} {cy!r}"):
    (folder / "sparse" / "0").mkdir(parents=True)
    cameras, images = ["# a comment", ""], ["# a comment"]
    for at, view in enumerate(views, start=1):
        kind, _, numbers = model.partition(" ")
        values = numbers.format(**{k: getattr(view, k) for k in ("fx", "fy", "cx", "cy")})
        cameras.append(f"{at} {kind} {view.width} {view.height} {values}")
        pose = [*quaternion(view.rotation), *view.translation]
        images.append(f"{at} {' '.join(repr(float(p)) for p in pose)} {at} {view.name}")
        images.append("" if at % 2 else "1.5 2.5 -1 7 8 33")
    (folder / "sparse" / "0" / "cameras.txt").write_text("\n".join(cameras))
    (folder / "sparse" / "0" / "images.txt").write_text("\n".join(images) + "\n")


def colmap_bytes(views, model=1):
    cameras, images = struct.pack("<Q", len(views)), struct.pack("<Q", len(views))
    for at, view in enumerate(views, start=1):
        cameras += struct.pack("<iiQQ", at, model, view.width, view.height)
        cameras += struct.pack("<4d", view.fx, view.fy, view.cx, view.cy)
        pose = [*quaternion(view.rotation), *view.translation]
        images += struct.pack("<i7di", at, *pose, at) + view.name.encode() + b"\0"
        images += struct.pack("<Q", at) + bytes(24 * at)
    return cameras, images


def write_colmap_binary(folder, views):
    (folder / "sparse" / "0").mkdir(parents=True)
    for name, data in zip(("cameras", "images"), colmap_bytes(views), strict=True):
        (folder / "sparse" / "0" / f"{name}.bin").write_bytes(data)


WRITERS = {
    "inria": write_inria,
    "frames": write_frames,
    "transforms": write_transforms,
    "colmap text": write_colmap_text,
    "colmap binary": write_colmap_binary,
}


def assert_same(found, wanted):
    assert [view.name for view in found] == [view.name for view in wanted]
    for mine, other in zip(found, wanted, strict=True):
        for key in ("width", "height", "fx", "fy", "cx", "cy"):
            assert getattr(mine, key) == pytest.approx(getattr(other, key)), key
        np.testing.assert_allclose(mine.rotation, other.rotation, atol=1e-9)
        np.testing.assert_allclose(mine.translation, other.translation, atol=1e-9)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_tells_the_same(kind, tmp_path):
    views = lenses(5)
    if kind == "inria":  # has no principal point
        views = [camera(at, name=v.name, cx=25.0, cy=18.5) for at, v in enumerate(views)]
    if kind == "frames":  # one lens for all
        views = [camera(at, name=v.name, fx=40.0, fy=41.0, cx=24.0, cy=18.0)
                 for at, v in enumerate(views)]  # fmt: skip
    WRITERS[kind](tmp_path, views)
    assert_same(read_cameras(tmp_path), views)


def test_an_opengl_camera_by_hand(tmp_path):
    """Identity in OpenGL looks along -z: what is ahead has negative z, what is above positive y."""
    frame = {"file_path": "a", "transform_matrix": np.eye(4).tolist()}
    content = {"camera_angle_x": math.pi / 2, "w": 100, "h": 50, "frames": [frame]}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    (view,) = read_cameras(tmp_path / "transforms.json")
    assert (view.fx, view.fy, view.cx, view.cy) == pytest.approx((50, 50, 50, 25))
    x, y, z = view.rotation @ np.array([0.5, 1.0, -2.0]) + view.translation
    assert (x, y, z) == (0.5, -1.0, 2.0)


def test_blender_scenes_take_the_size_from_the_image(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "train" / "r_0.png")
    frame = {"file_path": "./train/r_0", "transform_matrix": np.eye(4).tolist()}
    (tmp_path / "t.json").write_text(json.dumps({"camera_angle_x": 1.0, "frames": [frame]}))
    (view,) = read_cameras(tmp_path / "t.json")
    assert (view.width, view.height) == (20, 10)
    assert view.image == tmp_path / "train" / "r_0.png"


@pytest.mark.parametrize("place", [".", "sparse", "sparse/0", "sparse/0/images.bin"])
def test_colmap_folders_by_any_of_their_names(place, tmp_path):
    views = lenses(3)
    write_colmap_binary(tmp_path, views)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / views[1].name)
    found = read_cameras(tmp_path / place)
    assert_same(found, views)
    assert [view.image is not None for view in found] == [False, True, False]


@pytest.mark.parametrize(
    "model", ["SIMPLE_RADIAL {fx} {cx} {cy} 0", "OPENCV {fx} {fy} {cx} {cy} 0 0 0 0"]
)
def test_lenses_without_distortion_are_pinholes(model, tmp_path):
    write_colmap_text(tmp_path, [ahead(name="a")], model)
    assert read_cameras(tmp_path)[0].fx == 40


@pytest.mark.parametrize(
    "model",
    [
        "SIMPLE_RADIAL {fx} {cx} {cy} 0.01",
        "OPENCV {fx} {fy} {cx} {cy} 0 0 0.1 0",
        "OPENCV_FISHEYE {fx} {fy} {cx} {cy} 0 0 0 0",
        "FOV {fx} {fy} {cx} {cy} 0.9",
    ],
)
def test_distorted_lenses_are_refused(model, tmp_path):
    write_colmap_text(tmp_path, [ahead(name="a")], model)
    with pytest.raises(SourceError, match=rf"distorted \({model.split()[0]}\).*image_undistorter"):
        read_cameras(tmp_path)


def test_distorted_transforms_are_refused(tmp_path):
    write_transforms(tmp_path, lenses(1), k1=0.02)
    with pytest.raises(SourceError, match=r"distorted \(OPENCV, k1\)"):
        read_cameras(tmp_path)


FRAME = {"file_path": "a", "transform_matrix": np.eye(4).tolist()}
INRIA = {"img_name": "a", "width": 4, "height": 4, "fx": 1, "fy": 1,
         "position": [0, 0, 0], "rotation": np.eye(3).tolist()}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", "no cameras in it"),
        ("[]", "a list with entries is expected"),
        ("3", "an object is expected, not 3"),
        ("[7]", "camera 0: an object is expected, not 7"),
        ('{"frames": [1]}', "no cameras in it"),
        (json.dumps([{**INRIA, "fx": "wide"}]), "'fx' must be a finite number, not \"wide\""),
        (json.dumps([{**INRIA, "fx": float("nan")}]), "'fx' must be a finite number"),
        (json.dumps([{**INRIA, "fx": 0}]), "focal lengths must be above 0"),
        (json.dumps([{**INRIA, "width": 0}]), "0 x 4 pixels"),
        (json.dumps([{**INRIA, "width": 10**9}]), "1000000000 x 4 pixels"),
        (json.dumps([{**INRIA, "rotation": [[2, 0, 0], [0, 1, 0], [0, 0, 1]]}]), "not a rotation"),
        (json.dumps([{**INRIA, "position": [0, 0]}]), "'position' must be 3 finite numbers"),
        (json.dumps([{**INRIA, "img_name": None}]), "'img_name' must be a name, not nothing"),
        (json.dumps([INRIA, INRIA]), "two cameras are called 'a'"),
        (json.dumps({"frames": [FRAME]}), "neither 'w' and 'h' nor its image"),
        (json.dumps({"w": 4, "h": 4, "frames": [FRAME]}), "'camera_angle_x' is missing"),
        (json.dumps({"w": 4, "h": 4, "camera_angle_x": 4, "frames": [FRAME]}), "4.0 radians"),
    ],
)
def test_bad_json(content, message, tmp_path):
    path = tmp_path / "cameras.json"
    path.write_text(content)
    with pytest.raises(SourceError) as caught:
        read_cameras(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_folders_and_files_that_are_not_there(tmp_path):
    with pytest.raises(SourceError, match=r"no cameras there; give a COLMAP folder"):
        read_cameras(tmp_path)
    with pytest.raises(SourceError, match=r"cannot be read \(No such file"):
        read_cameras(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("cameras", "images", "message"),
    [
        (lambda c: c[:20], lambda i: i, "cameras.bin: damaged"),
        (lambda c: c, lambda i: i[:-1], "images.bin: damaged (ends before its last image)"),
        (lambda c: struct.pack("<Q", 10**12) + c[8:], lambda i: i, "cameras.bin: damaged"),
        (lambda c: c[:12] + struct.pack("<i", 99) + c[16:], lambda i: i, "camera model 99"),
        (lambda c: bytes(8), lambda i: i, "unknown camera 1"),
        (lambda c: c, lambda i: bytes(8), "holds no images"),
        (lambda c: c, lambda i: i[:12] + bytes(32) + i[44:], "NaN or infinity"),
    ],
)
def test_bad_colmap_files(cameras, images, message, tmp_path):
    good = colmap_bytes(lenses(2))
    (tmp_path / "cameras.bin").write_bytes(cameras(good[0]))
    (tmp_path / "images.bin").write_bytes(images(good[1]))
    with pytest.raises(SourceError) as caught:
        read_cameras(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(*[st.tuples(st.integers(0, 2**20), changes(3, least=0))] * 2)
def test_damaged_colmap_files_are_read_or_refused(tmp_path_factory, cameras, images):
    folder = tmp_path_factory.mktemp("fuzz")
    wholes = zip(("cameras", "images"), colmap_bytes(lenses(2)), (cameras, images), strict=True)
    for name, content, (length, made) in wholes:
        cut = content[: length % (len(content) + 1)]
        (folder / f"{name}.bin").write_bytes(damaged(cut, made))
    with contextlib.suppress(SourceError):
        assert read_cameras(folder)


def test_every_eighth_view_is_held_out():
    views = [ahead(name=f"{at:02d}") for at in reversed(range(18))]
    train, test = held_out(views)
    assert [view.name for view in test] == ["00", "08", "16"]
    assert len(train) == 15
    assert "08" not in {view.name for view in train}


def test_selecting_by_name():
    views = [ahead(name=name) for name in ("left", "right")]
    assert select(views, ()) == tuple(views)
    assert [view.name for view in select(views, ("right",))] == ["right"]
    with pytest.raises(SourceError, match=r"no camera 'lift'; did you mean left\? there are 2"):
        select(views, ("lift",))


def test_resizing_keeps_the_view():
    view = camera(1, 100, 60)
    half = view.scaled(0.5)
    assert (half.width, half.height) == (50, 30)
    assert (half.fx, half.cy) == pytest.approx((view.fx / 2, view.cy / 2))
    assert ahead().scaled(1e-9).width == 1


def test_a_photographed_folder_of_many_views(tmp_path):
    """As the Inria code lays one out: every eighth of 97 views is held out, each has its image."""
    views = [camera(seed, name=f"{seed:04d}") for seed in range(97)]
    write_inria(tmp_path, views)
    (tmp_path / "images").mkdir()
    for view in views:
        (tmp_path / "images" / f"{view.name}.jpg").touch()
    found = read_cameras(tmp_path)
    assert [view.name for view in found] == [view.name for view in views]
    assert all(view.image == tmp_path / "images" / f"{view.name}.jpg" for view in found)
    kept, judged = held_out(found)
    assert [view.name for view in judged] == [f"{at:04d}" for at in range(0, 97, 8)]
    assert len(judged) == 13
    assert {view.name for view in (*kept, *judged)} == {view.name for view in views}


@pytest.mark.needs_data("splats/miku_scene")
def test_the_photographed_scene():
    views = read_cameras(PHOTOS)
    assert len(views) == 97
    assert all(view.image is not None and view.width == 395 for view in views)
    assert len(held_out(views)[1]) == 13
