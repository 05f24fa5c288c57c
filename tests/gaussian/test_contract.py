"""The gaussian adapter keeps the promises of every adapter that writes one file."""

from __future__ import annotations

from typing import Any

import pytest
from splat_files import columns, make_scene, write_ply

from dpq.testing import FileAdapterContract
from dpq_gaussian.adapter import GaussianAdapter
from dpq_gaussian.options import EvaluateOptions, SampleOptions


@pytest.mark.slow
class TestGaussian(FileAdapterContract):
    adapter_class = GaussianAdapter

    @pytest.fixture
    def source(self, tmp_path_factory: pytest.TempPathFactory) -> str:
        return str(
            write_ply(tmp_path_factory.mktemp("scene") / "scene.ply", columns(make_scene(400)))
        )

    def _options(self, adapter: GaussianAdapter, verb: str) -> Any:
        quick = {
            "evaluate": EvaluateOptions(limit=2, pixels=64),
            "sample": SampleOptions(frames=2, width=64),
        }
        return quick.get(verb, adapter.default_options(verb))
