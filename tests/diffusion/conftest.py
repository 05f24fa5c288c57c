"""Folders of tiny models and pipelines, and artifacts made of them."""

from __future__ import annotations

from functools import cache, wraps
from pathlib import Path

import diffusion_models
import diffusion_pipelines
import pytest

from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.run import Run
from dpq_core.spec import QuantSpec
from dpq_diffusion.adapter import DiffusionAdapter
from dpq_diffusion.options import CalibrateOptions
from dpq_diffusion.options import CompressOptions as Own

QUICK = QuantSpec.preset(2, K=16, kmeans={"iterations": 2, "tail": 1})


@pytest.fixture(autouse=True, scope="module")
def shorten(short_searches) -> None:
    """Compress quickly."""


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The folder of a bare component, by its name in ``diffusion_models.BARE``."""

    @cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("bare") / kind
        diffusion_models.BARE[kind]().save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def dit_folder(tmp_path_factory) -> Path:
    return diffusion_pipelines.dit_pipeline(tmp_path_factory.mktemp("pipeline") / "dit")


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> Path:
    return diffusion_pipelines.text_pipeline(tmp_path_factory.mktemp("pipeline") / "text")


@pytest.fixture(scope="session")
def make_artifact(tmp_path_factory):
    """Compress a source and return the artifact's folder (the same for the same arguments)."""

    @cache
    def make(source, overrides=(), *, components="", probe=False) -> Path:
        out = tmp_path_factory.mktemp("artifact") / "out"
        options = CompressOptions(probe=probe, adapter=Own(components=components))
        compress(DiffusionAdapter(), str(source), out, QUICK, overrides, options=options)
        return out

    return make


CALIBRATION = {"trajectories": 3, "sampling_steps": 2, "batch_size": 4, "validation_samples": 6}
"""Options of ``dpq calibrate`` that make it quick."""


@pytest.fixture(scope="session")
def pipeline_of(tmp_path_factory):
    """The folder of a pipeline, by its name in ``diffusion_pipelines``."""

    @cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("whole") / kind
        getattr(diffusion_pipelines, kind)().save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def prompts(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red cube\n\n  a cat \n")
    return str(path)


@pytest.fixture
def small_flux_images(monkeypatch):
    """Let ``FluxPipeline`` draw 32 pixels: the 128 of its class are 16 times the work."""
    from diffusers import FluxPipeline

    original = FluxPipeline.__init__

    @wraps(original)
    def initialize(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.default_sample_size = 32

    monkeypatch.setattr(FluxPipeline, "__init__", initialize)


@pytest.fixture
def make_task(pipeline_of, prompts, monkeypatch, small_flux_images):
    """The task of an uncompressed pipeline, or of an artifact of it; quick."""
    monkeypatch.setattr("dpq_diffusion.calibration.build._VALIDATION_IMAGES", 2)

    def make(kind, source=None, seed=0, run=None, **options):
        folder = str(pipeline_of(kind))
        takes_text = (pipeline_of(kind) / "tokenizer").is_dir()
        told = {"prompts": prompts} if takes_text else {}
        chosen = CalibrateOptions(**{**CALIBRATION, **told, **options})
        run = run or Run(device="cpu", seed=seed)
        return DiffusionAdapter().calibration(str(source or folder), folder, chosen, run)

    return make
