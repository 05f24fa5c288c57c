"""The contract holds for the toy adapter, and finds the faults of adapters that break it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import install_toy, write_mlp
from toy_adapter import MLPAdapter

from dpq.testing import TensorAdapterContract
from dpq_core.errors import DPQError
from dpq_core.plugin.adapter import Adapter
from dpq_core.plugin.results import Sampling
from dpq_core.run import Run
from dpq_core.tensor.checkpoint import Checkpoint
from dpq_core.tensor.hidden_axes import HiddenAxis, Producer
from dpq_core.tensor.partition import Layout


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        site = tmp_path_factory.mktemp("site")
        install_toy(monkeypatch, site)
        yield


class FreeAdapter(MLPAdapter):
    """Names the hidden units between its two layers."""

    axis = HiddenAxis(consumer="w2", producers=(Producer("w1"), Producer("b1")))

    def hidden_axes(self, checkpoint: Checkpoint) -> list[HiddenAxis]:
        return [self.axis]


class ForgetsTheBias(FreeAdapter):
    axis = HiddenAxis(consumer="w2", producers=(Producer("w1"),))


class Misspelt(FreeAdapter):
    axis = HiddenAxis(consumer="w2", producers=(Producer("w_1"), Producer("b1")))


class TestToyAdapter(TensorAdapterContract):
    adapter_class = MLPAdapter

    @pytest.fixture
    def source(self, tmp_path: Path) -> str:
        return str(write_mlp(tmp_path / "net.safetensors"))


class SelectsNothing(MLPAdapter):
    def select(self, name: str, shape: tuple[int, ...]) -> Layout | None:
        return None


class WrongLayout(MLPAdapter):
    def select(self, name: str, shape: tuple[int, ...]) -> Layout | None:
        return Layout.CONV


class Unseeded(MLPAdapter):
    def sample(self, source: str, options: Any, run: Run, out: Path | None) -> Sampling:
        return Sampling(texts=(str(torch.rand(1).item()),))


class Silent(MLPAdapter):
    def sample(self, source: str, options: Any, run: Run, out: Path | None) -> Sampling:
        return Sampling()


class Wordy(MLPAdapter):
    summary = "two\nlines"


class RecognizesAll(MLPAdapter):
    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return True


class RecognizesOthers(MLPAdapter):
    recognized = "a .npz file"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.suffix == ".npz"


class UnusedOptions(MLPAdapter):
    options = {**MLPAdapter.options, "serve": dict}  # noqa: RUF012


def test_an_adapter_that_names_its_hidden_units_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(write_mlp(tmp_path / "net.safetensors"))
    contract = TensorAdapterContract()
    contract.test_its_hidden_units_may_be_reordered(FreeAdapter(), source, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("cls", "test"),
    [
        (SelectsNothing, "test_it_selects_tensors_that_can_be_cut"),
        (WrongLayout, "test_it_selects_tensors_that_can_be_cut"),
        (Unseeded, "test_samples_are_reproducible"),
        (Silent, "test_samples_are_reproducible"),
        (Wordy, "test_its_summary_is_one_line"),
        (UnusedOptions, "test_its_options_become_flags"),
        (RecognizesAll, "test_it_recognizes_its_own_sources"),
        (RecognizesOthers, "test_it_recognizes_its_own_sources"),
        (ForgetsTheBias, "test_its_hidden_units_may_be_reordered"),
        (Misspelt, "test_its_hidden_units_may_be_reordered"),
    ],
)
def test_the_contract_can_fail(
    cls: type[Adapter], test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = TensorAdapterContract()
    contract.adapter_class = cls  # type: ignore[misc]
    source = str(write_mlp(tmp_path / "net.safetensors"))
    values = {"adapter": cls(), "source": source, "tmp_path": tmp_path, "monkeypatch": monkeypatch}
    if test == "test_samples_are_reproducible":
        values["artifact"] = _Stub()
    method = getattr(contract, test)
    wanted = method.__code__.co_varnames[1 : method.__code__.co_argcount]
    with pytest.raises((AssertionError, DPQError)):
        method(**{name: values[name] for name in wanted})


class _Stub:
    """Stands for an artifact where only its path is used."""

    path = Path("unused")
