"""Text-to-image pipelines of every layout: compressed, loaded back and sampled."""

from __future__ import annotations

import diffusion_pipelines
import numpy as np
import pytest
from cli_runs import dpq
from PIL import Image

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"  # diffusers
    ),
]

slow = pytest.mark.slow

LAYOUTS = {
    "text_to_image": ("text_encoder,unet,vae", 8),
    "sdxl": ("text_encoder,text_encoder_2,unet,vae", 8),
    "ldm_text": ("bert,unet,vqvae", 64),
    "pixart_alpha": ("transformer,text_encoder,vae", 256),
    "pixart_sigma": ("transformer,text_encoder,vae", 256),
    "flux_pipeline": ("transformer,text_encoder,text_encoder_2,vae", 128),
    "flux_schnell": ("transformer", 128),
}


FOUR_BITS = ("--d", "1", "--K", "16", "--iterations", "2")  # of codes that are learned quickly


def image(path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=np.int16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        layout if layout == "text_to_image" else pytest.param(layout, marks=slow)
        for layout in LAYOUTS
    ],
)
def test_compress_load_and_sample_by_prompt(layout, tmp_path):
    components, side = LAYOUTS[layout]
    model, artifact = tmp_path / "model", tmp_path / "artifact"
    getattr(diffusion_pipelines, layout)().save_pretrained(model)
    options = ["--adapter", "diffusion", "--components", components, "-o", artifact]
    done = dpq("compress", model, *options, *FOUR_BITS)
    assert done.code == 0, done.err
    draw = ["--prompt", "a cat", "--sampling-steps", "2", "--columns", "1", "--seed", "3"]
    for out in ("first", "again"):
        extra = ["--baseline", model] if out == "first" else []
        done = dpq("sample", artifact, *draw, *extra, "-o", tmp_path / out)
        assert done.code == 0, done.err
    first = tmp_path / "first"
    assert (first / "before-after.png").is_file()
    after, before = (
        image(folder / "images" / "000000.png") for folder in (first, first / "baseline")
    )
    assert after.shape == before.shape == (side, side, 3)
    assert before.std() > 1
    assert 0 < np.abs(after - before).mean() < 60
    assert np.array_equal(after, image(tmp_path / "again" / "images" / "000000.png"))
