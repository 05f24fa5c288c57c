"""The diffusion adapter keeps the promises of every adapter."""

from __future__ import annotations

from typing import ClassVar

import pytest

from dpq.testing import TensorAdapterContract
from dpq_diffusion.adapter import DiffusionAdapter
from dpq_diffusion.options import CompressOptions, EvaluateOptions, SampleOptions


@pytest.mark.slow
class TestDiffusion(TensorAdapterContract):
    adapter_class = DiffusionAdapter
    source_name: ClassVar[str] = "builtin:tiny-dit"

    def _options(self, adapter, verb):
        quick = {
            "compress": CompressOptions(),
            "evaluate": EvaluateOptions(count=16, sampling_steps=2, baseline="none"),
            "sample": SampleOptions(label=("1",), count=2, sampling_steps=2),
        }
        return quick[verb]
