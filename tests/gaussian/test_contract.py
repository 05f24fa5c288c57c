"""The gaussian adapter keeps the promises of every adapter that writes one file."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from dpq.testing import FileAdapterContract
from dpq_core.artifact.stored import StoredModel
from dpq_gaussian.adapter import GaussianAdapter
from dpq_gaussian.options import EvaluateOptions, SampleOptions


@pytest.mark.slow
class TestGaussian(FileAdapterContract):
    adapter_class = GaussianAdapter
    source_name: ClassVar[str] = "builtin:tiny-scene"

    def test_evaluation_is_comparable_and_reproducible(
        self, adapter: Any, source: str, artifact: StoredModel
    ) -> None:
        """Of the pictures; seconds are never the same, and bits are those of either file."""
        chosen = self._options(adapter, "evaluate")
        measured = [
            [m for m in adapter.evaluate(path, chosen, self.run).metrics if "photographs" in m.name]
            for path in (source, str(artifact.path), source)
        ]
        assert [m.protocol for m in measured[0]] == [m.protocol for m in measured[1]]
        assert measured[0] == measured[2]
        assert len(measured[0]) == 2

    def _options(self, adapter: GaussianAdapter, verb: str) -> Any:
        quick = {
            "evaluate": EvaluateOptions(limit=2, pixels=64, baseline="none"),
            "sample": SampleOptions(frames=2, width=64),
        }
        return quick.get(verb, adapter.default_options(verb))
