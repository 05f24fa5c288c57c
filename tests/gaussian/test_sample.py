"""``dpq sample`` for splats: an orbit, given cameras, before and after."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from render_scenes import ahead, scene

from dpq_core.errors import AdapterError, DPQError, SourceError, SpecError
from dpq_core.plugin.options import describe, parse
from dpq_core.run import Run
from dpq_gaussian.colours import colour
from dpq_gaussian.formats import write_scene
from dpq_gaussian.options import SampleOptions
from dpq_gaussian.rendering import Splats, drawing_device, pictures, render
from dpq_gaussian.sample import sample


@pytest.fixture
def ply(tmp_path):
    made = scene(0, 300, 1, scales=(-4.0, -2.0))
    made = dataclasses.replace(made, opacity_logits=made.opacity_logits + 3)
    write_scene(made, tmp_path / "a.ply", "ply")
    return tmp_path / "a.ply"


@pytest.fixture
def cameras(tmp_path):
    """Two that see the scene, one that looks away."""
    views = [
        ahead(40, 30, name="IMG 1.jpg", translation=np.array([0, 0, 5.0])),
        ahead(40, 30, name="two", translation=np.array([0.5, 0, 5.0])),
        ahead(40, 30, name="away", translation=np.array([0, 0, -50.0])),
    ]
    first = views[0]
    content = {key: getattr(first, key) for key in ("width", "height", "fx", "fy", "cx", "cy")}
    content["frames"] = [
        {"name": v.name, "w2c": np.c_[v.rotation, v.translation].tolist()} for v in views
    ]
    (tmp_path / "cameras.json").write_text(json.dumps(content))
    return tmp_path / "cameras.json"


def pixels(path):
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))


def test_an_orbit(ply, tmp_path):
    seen = []
    run = Run(progress=lambda *step: seen.append(step))
    made = sample(str(ply), SampleOptions(frames=4, width=48), run, tmp_path / "out")
    (gif,) = made.files
    assert gif == tmp_path / "out" / "orbit.gif"
    with Image.open(gif) as film:
        assert (film.n_frames, film.size, film.info["loop"]) == (4, (48, 48), 0)
    frames = sorted((tmp_path / "out" / "orbit").iterdir())
    assert [frame.name for frame in frames] == [f"orbit-{at:03d}.png" for at in range(4)]
    assert all(pixels(frame).max() > 100 for frame in frames)
    assert seen[-1] == ("drawing orbit", 4, 4)


def test_given_cameras(ply, cameras, tmp_path):
    options = SampleOptions(cameras=str(cameras), background="#ff0000")
    made = sample(str(ply), options, Run(), tmp_path / "out")
    names = [path.relative_to(tmp_path / "out").as_posix() for path in made.files]
    assert names == ["views/IMG_1.jpg.png", "views/two.png", "views/away.png"]
    assert (pixels(made.files[2]) == (255, 0, 0)).all()
    assert pixels(made.files[0]).shape == (30, 40, 3)


def test_the_picture_is_the_rendered_one(ply, cameras, tmp_path):
    options = SampleOptions(cameras=str(cameras), names=("two",))
    (path,) = sample(str(ply), options, Run(), tmp_path / "out").files
    from dpq_gaussian.cameras import read_cameras
    from dpq_gaussian.loading import load_scene

    drawn = render(Splats.of(load_scene(str(ply))), read_cameras(cameras)[1]).colour
    np.testing.assert_array_equal(pixels(path), pictures.to_bytes(drawn))


def test_sizes_of_given_cameras(ply, cameras, tmp_path):
    for sizes, shape in (
        ({"width": 20}, (15, 20)),
        ({"height": 60}, (60, 80)),
        ({"width": 10, "height": 10}, (10, 10)),
    ):
        options = SampleOptions(cameras=str(cameras), names=("two",), **sizes)
        (path,) = sample(str(ply), options, Run(), tmp_path / "out").files
        assert pixels(path).shape[:2] == shape


def test_before_and_after(ply, cameras, tmp_path):
    faded = dataclasses.replace(scene(0, 300, 1), sh_dc=scene(0, 300, 1).sh_dc * np.float32(0.5))
    write_scene(faded, tmp_path / "b.ply", "ply")
    options = SampleOptions(cameras=str(cameras), names=("two",), frames=2, width=40,
                            baseline=str(ply))  # fmt: skip
    made = sample(str(tmp_path / "b.ply"), options, Run(), tmp_path / "out")
    names = [path.relative_to(tmp_path / "out").as_posix() for path in made.files]
    assert names == ["views-before-after/two.png", "orbit-before-after.gif"]
    assert pixels(made.files[0]).shape == (30 + 26, 40 + 4 + 40, 3)
    assert "views: " in made.texts[0]
    assert f"dB PSNR to {ply}, 1 pictures" in made.texts[0]


def test_a_scene_beside_itself_is_the_same(ply, tmp_path):
    options = SampleOptions(frames=2, width=32, baseline=str(ply))
    made = sample(str(ply), options, Run(), tmp_path / "out")
    assert made.texts[0].startswith("orbit: 120.00 dB PSNR")
    frame = pixels(tmp_path / "out" / "orbit-before-after" / "orbit-000.png")[26:]
    np.testing.assert_array_equal(frame[:, :32], frame[:, 36:])


def test_both_are_drawn_with_the_filter_that_one_of_them_asks_for(ply, tmp_path):
    """A .spz can say that its scene needs the anti-aliasing filter, a .ply cannot."""
    from dpq_gaussian.loading import load_scene

    original = load_scene(str(ply))
    write_scene(original, tmp_path / "plain.spz", "spz")
    write_scene(original, tmp_path / "smooth.spz", "spz", antialiased=True)
    for name in ("plain", "smooth"):
        options = SampleOptions(frames=1, width=32, baseline=str(ply))
        made = sample(str(tmp_path / f"{name}.spz"), options, Run(), tmp_path / name)
        assert float(made.texts[0].split()[1]) > 40
    frames = [pixels(tmp_path / n / "orbit-before-after" / "orbit-000.png") for n in
              ("plain", "smooth")]  # fmt: skip
    assert (frames[0] != frames[1]).any()


def test_cameras_that_see_nothing(ply, cameras, tmp_path):
    options = SampleOptions(cameras=str(cameras), names=("away",))
    with pytest.raises(SourceError, match="none of its 1 cameras sees the scene"):
        sample(str(ply), options, Run(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mp4_without_an_encoder(ply, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AdapterError, match=r"mp4: needs PyAV: pip install 'dpq\[video\]'"):
        sample(str(ply), SampleOptions(mp4=True), Run(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mp4(ply, tmp_path):
    av = pytest.importorskip("av")
    options = SampleOptions(mp4=True, frames=3, width=33)
    made = sample(str(ply), options, Run(), tmp_path / "out")
    with av.open(str(made.files[1])) as film:
        frames = list(film.decode(video=0))
    assert [(frame.width, frame.height) for frame in frames] == [(32, 32)] * 3


def test_a_folder_is_needed(ply):
    with pytest.raises(SpecError, match="a folder; give output"):
        sample(str(ply), SampleOptions(), Run(), None)


def test_a_place_where_nothing_can_be_written(ply, tmp_path):
    with pytest.raises(SourceError, match="cannot be written"):
        sample(str(ply), SampleOptions(frames=1, width=8), Run(), ply)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--names", "a"], "names: an orbit has no named cameras; give --cameras with it"),
        (["--width", "-1"], "--width -1: must be 0 to 8192"),
        (["--frames", "0"], "--frames 0: nothing is drawn; give --cameras with it"),
        (["--elevation", "90"], "--elevation 90.0: must be -85 to 85"),
        (["--sh-degree", "4"], "--sh-degree 4: must be 0 to 3"),
        (["--fps", "0"], "--fps 0.0: must be 0.1 to 100"),
        (
            ["--background", "#12"],
            "--background #12: is no colour; use black, white, grey or #",
        ),
    ],
)
def test_options_that_cannot_be(words, message):
    with pytest.raises(SpecError) as caught:
        parse(SampleOptions, words)
    assert message in caught.value.on_the_command_line()


def test_options_are_flags():
    assert "--antialiased" in {option.flag for option in describe(SampleOptions)}
    assert parse(SampleOptions, ["--no-antialiased"]).antialiased is False
    assert SampleOptions(cameras="x").orbit_frames == 0
    assert SampleOptions().orbit_frames == 36


def test_colours():
    assert colour("white") == (1, 1, 1)
    assert colour("#ff8000") == pytest.approx((1, 128 / 255, 0))


def test_devices():
    assert drawing_device("cpu") == torch.device("cpu")
    with pytest.raises(DPQError, match="meta"):
        drawing_device("meta")
