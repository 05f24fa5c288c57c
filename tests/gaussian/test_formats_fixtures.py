"""Real files of other programs, against what splat-transform 3.7 makes of them.

They are not in the repository. The same facts are tested on small files by independent writers and
slow decoders: test_formats_packed.py, test_formats_ply.py, test_formats_coordinates.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from splat_files import SPLATS

from dpq_gaussian.formats import check_values, read_scene, write_scene

# File -> index -> x y z, scales, quaternion, opacity, DC and f_rest 0, 15, 44 of its .ply.
CONVERTED = {
    "guitar.compressed.ply": {
        0: "-0.472491 -4.0782 -0.166346 -8.79864 -5.23289 -5.72571 0.795108 0.577159 -0.046311 "
        "-0.180406 0.764606 0.132671 -0.846012 -1.50645",
        45000: "0.742958 -0.364492 -0.093833 -6.31542 -5.35136 -3.46632 0.700941 0.570247 "
        "-0.0864011 0.419564 1.24522 -1.16354 -1.18263 -1.12765",
    },
    "angel-kneeling.sog": {
        0: "-0.308414 -1.46282 -0.310351 -4.98246 -6.37359 -9.0272 0.928439 -0.0526864 0.291162 "
        "0.22461 -2.92399 0.924456 0.827145 0.688129",
        45000: "0.755008 0.271564 -0.134272 -8.14523 -4.70839 -5.6621 0.995611 0.0804161 "
        "-0.0471405 -0.0083189 -2.4108 1.09128 1.06347 1.00787",
    },
    "amaebi.spz": {
        0: "0.200195 -0.436523 0.371582 -5.4375 -6.0 -5.375 0.905585 0.411765 -0.027451 "
        "0.0980392 1.22276 1.08497 1.03268 1.00654 0.0625 0.0625 0.0",
        45000: "0.231201 -0.435303 -0.19751 -7.0 -6.8125 -7.25 0.443224 -0.85098 0.0431373 "
        "0.278431 -1.29098 1.1634 1.13725 1.08497 0.0 -0.0625 0.125",
    },
}


def real(*names: str) -> list[Any]:
    """Files of the shared data, each one needed by its test alone."""
    return [pytest.param(n, marks=pytest.mark.needs_data(f"splats/{n}")) for n in names]


@pytest.mark.parametrize("name", real(*CONVERTED))
def test_readings_agree_with_another_parser(name):
    """splat-transform does not turn the axes of .spz; neither does reading it as rdf."""
    loaded = read_scene(SPLATS / name, axes="rdf")
    scene = loaded.scene
    for index, text in CONVERTED[name].items():
        found = [*scene.positions[index], *scene.log_scales[index], *scene.rotations[index]]
        found += [scene.opacity_logits[index], *scene.sh_dc[index]]
        if scene.sh_degree:
            found += [scene.sh_rest[index, 0, 0], scene.sh_rest[index, 0, 1]]
            found += [scene.sh_rest[index, 14, 2]]
        assert found == pytest.approx([float(word) for word in text.split()], rel=1e-5, abs=2e-6)


SCENES = {
    "miku_sh3.ply": ("ply", 119_138, 3),
    "train-1000_sh3.ply": ("ply", 1_000, 3),
    "fourth_st_131k_sh3.ply": ("ply", 131_199, 3),
    "tabletop_214k_sh0.ply": ("ply", 213_944, 0),
    "guitar.compressed.ply": ("compressed.ply", 90_854, 0),
    "angel-kneeling.sog": ("sog", 83_547, 0),
    "amaebi.spz": ("spz", 78_567, 3),
}


@pytest.mark.parametrize("name", real(*SCENES))
def test_real_scenes_are_sound(name):
    loaded = read_scene(SPLATS / name)
    assert (loaded.format, len(loaded.scene), loaded.scene.sh_degree) == SCENES[name]
    check_values(loaded.scene, name)


@pytest.mark.parametrize(
    "name", real("miku_sh3.ply", "train-1000_sh3.ply", "tabletop_214k_sh0.ply")
)
def test_inria_files_are_rewritten_byte_for_byte(tmp_path, name):
    write_scene(read_scene(SPLATS / name).scene, tmp_path / "a.ply", "ply")
    assert (tmp_path / "a.ply").read_bytes() == (SPLATS / name).read_bytes()


@pytest.mark.slow
@pytest.mark.needs_data("splats/miku_sh3.ply")
def test_what_spz_loses_on_a_real_scene(tmp_path):
    """Half of a step of each attribute, but for values outside of what it can hold."""
    scene = read_scene(SPLATS / "miku_sh3.ply").scene
    written = write_scene(scene, tmp_path / "a.spz", "spz")
    assert 2.2e6 < written.nbytes < 2.4e6  # 2.36 MB by the reference implementation
    found = read_scene(tmp_path / "a.spz").scene
    assert np.abs(scene.positions - found.positions).max() <= 0.5 / 4096
    inside = (scene.log_scales > -10) & (scene.log_scales < 5.9)
    assert np.abs(scene.log_scales - found.log_scales)[inside].max() <= 0.5 / 16 + 1e-6
    assert np.abs(scene.sh_rest - found.sh_rest).max() < 0.07
