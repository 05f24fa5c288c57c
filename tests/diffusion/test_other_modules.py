"""Weights whose modules have no quantized counterpart are stored small and loaded dense."""

from __future__ import annotations

from typing import Any

import diffusion_models
import pytest
import torch
from diffusers import ModelMixin  # noqa: TID253 - the base class below
from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: TID253
from torch import nn

from dpq_core.artifact import Artifact
from dpq_core.errors import ArtifactError, SourceError
from dpq_core.jobs.compress import compress
from dpq_core.jobs.probe import check_probe
from dpq_core.run import Run
from dpq_core.runtime import PQConv2d, PQLinear, PQWeight, swap
from dpq_core.spec import QuantSpec
from dpq_diffusion.adapter import DiffusionAdapter
from dpq_diffusion.hub.quantizer import DPQConfig

SPEC = QuantSpec.preset(2, K=16)


class Scaled(nn.Linear):
    """A Linear with a forward pass of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, 2 * self.weight, self.bias)


class Mixing(nn.Module):
    """A bare parameter that is used as a matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


class ThirdParty(ModelMixin, ConfigMixin):
    """Every kind of module that stage 1 selects by name and shape alone."""

    @register_to_config
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(16, width, 3, padding=1)
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.linear = nn.Linear(width, width)
        self.scaled = Scaled(width, width)
        self.mixing = Mixing(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.up(self.proj_in(x)).flatten(2).transpose(1, 2)
        tokens = self.mixing(self.scaled(self.linear(tokens)))
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


DENSE = ("attention.out_proj", "mixing", "scaled", "up")


def output(model: Any) -> torch.Tensor:
    x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(x.to(model.linear.bias.dtype)).float()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, make_artifact):
    folder = tmp_path_factory.mktemp("third") / "party"
    diffusion_models._lively(ThirdParty()).save_pretrained(folder)
    return make_artifact(folder)


@pytest.mark.slow
def test_they_give_what_their_decoded_weights_give(artifact):
    opened = Artifact.open(artifact)
    quantized = {t.name for t in opened.manifest.tensors if t.spec is not None}
    assert quantized >= {f"{name}.weight" for name in DENSE}
    model = ThirdParty.from_pretrained(artifact)
    assert isinstance(model.proj_in, PQConv2d)
    assert isinstance(model.linear, PQLinear)
    for name in DENSE:
        module = model.get_submodule(name)
        assert not any(isinstance(m, PQWeight) for m in module.modules())
        assert torch.equal(module.weight, opened.read(f"{name}.weight"))
        assert not module.weight.requires_grad
    twin = ThirdParty().eval()
    twin.load_state_dict({name: opened.read(name) for name in opened.names()})
    torch.testing.assert_close(output(model), output(twin), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_saved_as_they_are_then(artifact, dtype, tmp_path):
    model = ThirdParty.from_pretrained(artifact, dtype=dtype)
    assert model.up.weight.dtype == dtype
    model.save_pretrained(tmp_path)
    again = ThirdParty.from_pretrained(tmp_path, dtype=dtype)
    assert torch.equal(output(again), output(model))
    assert isinstance(again.linear, PQLinear)
    again.dequantize()
    expected = output(model)
    difference = (output(again) - expected).abs().mean() / expected.abs().mean()
    # The attention of this random model is steep: bfloat16 alone moves outputs by 1.6 % on average.
    assert difference < {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]


@pytest.mark.slow
def test_quantizing_while_loading_gives_the_same(tmp_path):
    folder = tmp_path / "dense"
    diffusion_models._lively(ThirdParty()).save_pretrained(folder)
    compress(DiffusionAdapter(), str(folder), tmp_path / "out", QuantSpec.preset(2))
    loaded = ThirdParty.from_pretrained(folder, quantization_config=DPQConfig(bits=2))
    assert torch.equal(output(loaded), output(ThirdParty.from_pretrained(tmp_path / "out")))
    loaded.save_pretrained(tmp_path / "again")
    again = ThirdParty.from_pretrained(tmp_path / "again")
    assert torch.equal(output(again), output(loaded))


@pytest.mark.slow
def test_a_class_that_is_not_of_diffusers_is_verified_by_its_weights(tmp_path):
    """dpq cannot load it, but compresses it; its own code loads it."""
    folder, out = tmp_path / "dense", tmp_path / "out"
    diffusion_models._lively(ThirdParty()).save_pretrained(folder)
    compress(DiffusionAdapter(), str(folder), out, SPEC)
    found = check_probe(DiffusionAdapter(), Artifact.open(out), Run(device="cpu"))
    assert found is not None
    assert found.ok
    with pytest.raises(SourceError, match="no class 'ThirdParty'; load it with") as caught:
        DiffusionAdapter().load(str(out), Run(device="cpu"))
    assert "\n" not in str(caught.value)


def test_a_module_without_a_matrix_is_refused():
    model = ThirdParty()
    model.norm = nn.LayerNorm(8)
    with pytest.raises(ArtifactError, match=r"'norm' is quantized, but LayerNorm is no Linear"):
        swap.swap_in(model, "norm", SPEC)
    with pytest.raises(ArtifactError, match="no module 'gone'"):
        swap.swap_in(model, "gone", SPEC)


def test_what_is_offloaded_while_loading_cannot_be_decoded():
    with torch.device("meta"):
        model = ThirdParty()
    swap.swap_in(model, "up", SPEC)
    with pytest.raises(ArtifactError, match=r"'up': ConvTranspose2d is decoded while it is loaded"):
        swap.decode_pending(model)
