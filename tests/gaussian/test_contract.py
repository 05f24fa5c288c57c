"""The gaussian adapter keeps the promises of every adapter that writes one file."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from dpq.testing import FileAdapterContract
from dpq_gaussian.adapter import GaussianAdapter
from dpq_gaussian.options import EvaluateOptions, SampleOptions


@pytest.mark.slow
class TestGaussian(FileAdapterContract):
    adapter_class = GaussianAdapter
    source_name: ClassVar[str] = "builtin:tiny-scene"

    def _options(self, adapter: GaussianAdapter, verb: str) -> Any:
        quick = {
            "evaluate": EvaluateOptions(limit=2, pixels=64, baseline="none"),
            "sample": SampleOptions(frames=2, width=64),
        }
        return quick.get(verb, adapter.default_options(verb))
