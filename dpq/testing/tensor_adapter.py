"""TensorAdapterContract: the tests of adapters of models of named tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from dpq.testing.adapter import AdapterContract
from dpq_core.artifact import Artifact
from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.planning.plan import make_plan
from dpq_core.plugin.adapter import (
    Probes,
    TensorAdapter,
)
from dpq_core.spec import KMeansSpec, Override, QuantSpec
from dpq_core.tensor.partition import Partition


class TensorAdapterContract(AdapterContract):
    """The tests of what an adapter of a model of named tensors promises beyond that.

    Class attributes:
        spec: used for the artifact; few iterations, since quality is not what is tested here.
    """

    spec: ClassVar[QuantSpec] = QuantSpec(K=16, kmeans=KMeansSpec(iterations=2, tail=1))

    def test_it_selects_tensors_that_can_be_cut(
        self, adapter: TensorAdapter[Any], source: str
    ) -> None:
        """At least one tensor is selected, and its layout suits its shape."""
        checkpoint = adapter.open(source)
        selected = adapter.layouts(checkpoint)
        assert selected, "select() and layouts() pick no tensor: nothing would be compressed"
        for name, layout in selected.items():
            Partition.of(checkpoint.tensors[name].shape, layout, self.spec)
        assert selected == adapter.layouts(checkpoint)

    def test_the_presets_fit(self, adapter: TensorAdapter[Any], source: str) -> None:
        """Every preset width can be planned and makes the model smaller."""
        checkpoint = adapter.open(source)
        before = sum(info.nbytes for info in checkpoint.tensors.values())
        for bits in (1, 2, 3, 4):
            assert make_plan(checkpoint, adapter, QuantSpec.preset(bits)).nbytes < before

    def test_the_probe_is_finite_and_reproducible(self, adapter: Any, artifact: Artifact) -> None:
        """Named tensors, without NaN, the same in a second run."""
        self._needs(adapter, "probe")
        first, second = adapter.probe(artifact, self.run), adapter.probe(artifact, self.run)
        assert first
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert bool(torch.isfinite(tensor).all()), name
            assert torch.equal(tensor, second[name]), name

    def test_its_hidden_units_may_be_reordered(
        self,
        adapter: TensorAdapter[Any],
        source: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Where ``hidden_axes`` names some: the probe is that of permutations that are stored."""
        checkpoint = adapter.open(source)
        consumers = {axis.consumer for axis in adapter.hidden_axes(checkpoint)}
        if not consumers:
            pytest.skip(f"adapter {adapter.name!r} names no hidden axes")
        if not isinstance(adapter, Probes):
            pytest.skip(f"adapter {adapter.name!r} has no probe")
        named = sorted(consumers & set(adapter.layouts(checkpoint)))
        rules = [Override(name, {"permute": True}) for name in named]
        free = Artifact.open(self.compressed(adapter, source, tmp_path / "free", rules))
        monkeypatch.setattr(type(adapter), "hidden_axes", lambda *_: ())
        stored = Artifact.open(self.compressed(adapter, source, tmp_path / "stored", rules))
        assert free.manifest.stored_nbytes < stored.manifest.stored_nbytes, "no axis fits"
        found, wanted = adapter.probe(free, self.run), adapter.probe(stored, self.run)
        for name, tensor in wanted.items():
            away = (found[name].float() - tensor.float()).abs().max()
            assert away <= 0.01 * tensor.float().abs().max(), name

    def compressed(
        self,
        adapter: TensorAdapter[Any],
        source: str,
        out: Path,
        rules: Iterable[Override] = (),
    ) -> Path:
        """The source as a folder of tensors, some of them by rules of their own."""
        without = CompressOptions(probe=False)
        made = compress(adapter, source, out, self.spec, rules, options=without, run=self.run)
        return made.artifact
