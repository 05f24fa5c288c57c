"""builtin:tiny-scene: small, real, trained; its held-out photographs look like its pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dpq_gaussian.cameras import read_cameras
from dpq_gaussian.loading import load_scene
from dpq_gaussian.rendering import Splats, render
from dpq_gaussian.scene import check_values
from dpq_gaussian.scene.sources import BUILTIN

SOURCE = "builtin:tiny-scene"
FOLDER = BUILTIN / "tiny-scene"


@pytest.fixture(scope="module")
def splats():
    return Splats.of(load_scene(SOURCE))


def test_it_is_small_enough_to_ship(splats):
    assert 20_000 <= len(splats) <= 60_000
    assert splats.sh_degree == 3
    assert (FOLDER / "scene.ply").stat().st_size <= 15e6
    assert sum(path.stat().st_size for path in (FOLDER / "views").iterdir()) < 0.5e6


def test_its_values_are_sound():
    check_values(load_scene(SOURCE), SOURCE)


@pytest.mark.slow
def test_held_out_photographs(splats):
    cameras = read_cameras(SOURCE)
    assert len(cameras) == 13
    found = []
    for camera in cameras:
        assert camera.image is not None
        with Image.open(camera.image) as file:
            photograph = torch.from_numpy(np.array(file.convert("RGB"), np.float32)) / 255
        picture = render(splats, camera).colour.clamp(0, 1)
        found.append(float(-10 * torch.log10((picture - photograph).square().mean())))
    assert np.mean(found) > 29.9  # 30.2 when it was made


def test_the_card_tells_licence_and_numbers():
    card = (FOLDER / "README.md").read_text()
    for words in ("license: mit", "Copyright (c) 2024 noname", "PSNR on the 13 held-out"):
        assert words in card
