"""FileAdapterContract: the tests of adapters that code a source into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from dpq.testing.adapter import AdapterContract
from dpq_core.artifact.stored import StoredModel
from dpq_core.jobs.compress_file import compress_file
from dpq_core.plugin.adapter import (
    FileAdapter,
    PacksWithin,
)


class FileAdapterContract(AdapterContract):
    """The tests of what an adapter that codes a source into one file promises beyond that."""

    output_name: ClassVar[str] = "artifact.dpq"

    def test_a_budget_is_kept(
        self, adapter: FileAdapter[Any], source: str, artifact: StoredModel, tmp_path: Path
    ) -> None:
        """A file for a number of bytes is never larger; nine tenths can be reached."""
        if not isinstance(adapter, PacksWithin):
            pytest.skip(f"adapter {adapter.name!r} packs within no number of bytes")
        budget = artifact.nbytes * 9 // 10
        out = tmp_path / self.output_name
        chosen = self._options(adapter, "compress")
        made = compress_file(adapter, source, out, options=chosen, budget=budget, run=self.run)
        assert made.nbytes == out.stat().st_size <= budget

    def compressed(self, adapter: FileAdapter[Any], source: str, out: Path) -> Path:
        """The source as one file."""
        chosen = self._options(adapter, "compress")
        return compress_file(adapter, source, out, options=chosen, run=self.run).output
