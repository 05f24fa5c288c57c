"""AdapterContract: the tests that adapters of both kinds have to pass."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pytest
import torch

from dpq_core.artifact.stored import StoredModel
from dpq_core.errors import SourceError
from dpq_core.jobs.request import open_artifact
from dpq_core.plugin import options, registry
from dpq_core.plugin.adapter import Adapter
from dpq_core.plugin.results import Evaluation
from dpq_core.run import Run

_ARTIFACTS: dict[tuple[type, str, str], Path] = {}
"""Class of tests, source and its fingerprint -> what it was compressed to."""


class AdapterContract(ABC):
    """The tests of what every adapter promises, whatever its artifacts are.

    Class attributes:
        adapter_class: the adapter under test.
        source_name: a small source that it opens; override ``source`` where one must be made.
        output_name: what the artifact is called.
        run: device and seed.
    """

    adapter_class: ClassVar[type[Adapter]]
    source_name: ClassVar[str]
    output_name: ClassVar[str] = "artifact"
    run: ClassVar[Run] = Run(device="cpu", seed=0)

    @pytest.fixture
    def adapter(self) -> Any:
        """A new adapter."""
        return self.adapter_class()

    @pytest.fixture
    def source(self, tmp_path: Path) -> str:
        """What the adapter opens; by default ``source_name``."""
        return self.source_name

    @pytest.fixture
    def artifact(
        self, adapter: Any, source: str, tmp_path_factory: pytest.TempPathFactory
    ) -> StoredModel:
        """The source, compressed; once for all tests of a class that are given the same source."""
        key = type(self), source, adapter.open(source).fingerprint
        if key not in _ARTIFACTS:
            out = tmp_path_factory.mktemp("contract") / self.output_name
            _ARTIFACTS[key] = self.compressed(adapter, source, out)
        return open_artifact(str(_ARTIFACTS[key]))

    @abstractmethod
    def compressed(self, adapter: Any, source: str, out: Path) -> Path:
        """The source as an artifact at ``out``: the contracts of the two kinds know how."""

    def test_it_is_installed_under_its_name(self) -> None:
        """The entry point ``name`` of the group ``dpq.adapters`` gives this class."""
        assert type(registry.load(self.adapter_class.name)) is self.adapter_class

    def test_its_summary_is_one_line(self) -> None:
        """``dpq adapters`` shows it."""
        summary = self.adapter_class.summary
        assert summary.strip()
        assert "\n" not in summary

    def test_its_builtin_models_can_be_opened(self, adapter: Any) -> None:
        """And ``builtin:NAME`` alone says which adapter to take."""
        for name in self.adapter_class.builtins:
            assert adapter.open(f"builtin:{name}").tensors
            assert registry.builtins()[name] == self.adapter_class.name

    def test_its_options_become_flags(self) -> None:
        """Every options class can be described, built without arguments, and belongs to a verb."""
        for verb, cls in self.adapter_class.options.items():
            verbs = ("compress", *self.adapter_class.capabilities())
            assert verb in verbs, f"options for {verb!r}, no such verb"
            options.describe(cls)
            assert options.parse(cls, []) == cls()

    def test_a_source_that_does_not_exist_is_a_one_line_error(
        self, adapter: Any, tmp_path: Path
    ) -> None:
        """SourceError, naming the source."""
        missing = str(tmp_path / "no-such-source")
        with pytest.raises(SourceError) as caught:
            adapter.open(missing)
        message = str(caught.value)
        assert "no-such-source" in message
        assert "\n" not in message

    def test_it_recognizes_its_own_sources(self, adapter: Any, source: str, tmp_path: Path) -> None:
        """Its source, where it recognizes any, and neither an empty folder nor what is missing."""
        folder = tmp_path / "nothing"
        folder.mkdir()
        assert not adapter.recognizes(folder)
        assert not adapter.recognizes(folder / "no-such-source")
        if adapter.recognized and Path(source).exists():
            assert adapter.recognizes(Path(source))

    def test_tensors_are_what_they_were_announced_to_be(self, adapter: Any, source: str) -> None:
        """Shape and dtype before reading equal those after; reading twice gives the same."""
        checkpoint = adapter.open(source)
        assert checkpoint.tensors, "the source holds no tensors"
        for name, info in checkpoint.tensors.items():
            tensor = checkpoint.read(name)
            assert (tuple(tensor.shape), tensor.dtype) == (info.shape, info.dtype), name
            assert tensor.device.type == "cpu", name
            assert torch.equal(tensor, checkpoint.read(name)), name

    def test_opening_twice_gives_the_same(self, adapter: Any, source: str) -> None:
        """Names in the same order, and the same fingerprint."""
        first, second = adapter.open(source), adapter.open(source)
        assert list(first.tensors) == list(second.tensors)
        assert first.fingerprint == second.fingerprint

    def test_side_files_exist_and_stay_inside(self, adapter: Any, source: str) -> None:
        """Their names are relative and do not lead out of the artifact."""
        for name, path in adapter.open(source).side_files.items():
            parts = PurePosixPath(name).parts
            assert path.is_file(), name
            assert parts, "a side file without a name"
            assert parts[0] != "/", name
            assert ".." not in parts, name

    def test_compressing_twice_gives_the_same_bytes(
        self, adapter: Any, source: str, artifact: StoredModel, tmp_path: Path
    ) -> None:
        """Same source, spec and seed: the same bytes, generated files included."""
        again = self.compressed(adapter, source, tmp_path / artifact.path.name)
        first, second = _content(artifact.path), _content(again)
        assert sorted(first) == sorted(second)
        assert [name for name in first if first[name] != second[name]] == []
        assert artifact.manifest.adapter == adapter.name

    def test_evaluation_is_comparable_and_reproducible(
        self, adapter: Any, source: str, artifact: StoredModel
    ) -> None:
        """Artifact and source get the same metrics by one protocol; a rerun the same values."""
        self._needs(adapter, "evaluate")
        chosen = self._options(adapter, "evaluate")
        plain = adapter.evaluate(source, chosen, self.run)
        quantized = adapter.evaluate(str(artifact.path), chosen, self.run)
        assert plain.metrics, "no metric"
        assert _protocols(plain) == _protocols(quantized)
        for metric in (*plain.metrics, *quantized.metrics):
            assert math.isfinite(metric.value), metric
            assert metric.protocol.strip(), f"{metric.name} does not say how it was measured"
        assert adapter.evaluate(source, chosen, self.run).metrics == plain.metrics

    def test_samples_are_reproducible(
        self, adapter: Any, artifact: StoredModel, tmp_path: Path
    ) -> None:
        """Something is made, the same for the same seed; files lie in the folder given."""
        self._needs(adapter, "sample")
        chosen, made = self._options(adapter, "sample"), []
        for folder in (tmp_path / "a", tmp_path / "b"):
            folder.mkdir()
            sampling = adapter.sample(str(artifact.path), chosen, self.run, folder)
            assert all(path.is_relative_to(folder) for path in sampling.files)
            made.append((sampling.texts, [path.read_bytes() for path in sampling.files]))
        assert made[0] == made[1]
        assert any(made[0]), "neither texts nor files"

    def test_exports_are_whole_and_reproducible(
        self, adapter: Any, source: str, artifact: StoredModel, tmp_path: Path
    ) -> None:
        """Every format, of both, is written twice with the same bytes and leaves nothing else."""
        self._needs(adapter, "export")
        assert adapter.exports, "no format to export to"
        chosen = self._options(adapter, "export")
        for to in adapter.exports:
            for kind, exported in (("source", source), ("artifact", str(artifact.path))):
                made = []
                for turn in ("a", "b"):
                    out = tmp_path / f"{kind}-{to}-{turn}" / f"model.{to}"
                    out.parent.mkdir()
                    done = adapter.export(exported, to, chosen, self.run, out)
                    assert done.files, "no file"
                    assert all(path.is_file() for path in done.files)
                    assert list(out.parent.iterdir()) == [out]
                    made.append(_content(out.parent))
                assert made[0] == made[1]

    def test_it_loads_source_and_artifact(
        self, adapter: Any, source: str, artifact: StoredModel
    ) -> None:
        """Both give a model."""
        self._needs(adapter, "load")
        assert adapter.load(source, self.run) is not None
        assert adapter.load(str(artifact.path), self.run) is not None

    def _needs(self, adapter: Any, verb: str) -> None:
        if verb not in adapter.capabilities():
            pytest.skip(f"adapter {adapter.name!r} has no {verb}")

    def _options(self, adapter: Any, verb: str) -> Any:
        """Options of a verb; override to make a slow default quick."""
        return adapter.default_options(verb)


def _content(path: Path) -> dict[str, bytes]:
    """The bytes of a file, or of all files of a folder by name."""
    if path.is_file():
        return {"": path.read_bytes()}
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def _protocols(evaluation: Evaluation) -> list[tuple[str, str, bool]]:
    return [(m.name, m.protocol, m.higher_is_better) for m in evaluation.metrics]
