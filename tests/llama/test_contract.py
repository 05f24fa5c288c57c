"""The llama adapter keeps the promises of every adapter."""

from __future__ import annotations

from typing import ClassVar

import pytest

from dpq.testing import TensorAdapterContract
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.options import EvaluateOptions, SampleOptions


@pytest.mark.slow
class TestLlama(TensorAdapterContract):
    adapter_class = LlamaAdapter
    source_name: ClassVar[str] = "builtin:tiny-llama"

    def _options(self, adapter, verb):
        quick = {"evaluate": EvaluateOptions(limit=2), "sample": SampleOptions(max_new_tokens=8)}
        return quick.get(verb) or adapter.default_options(verb)
