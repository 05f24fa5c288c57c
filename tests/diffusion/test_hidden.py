"""The hidden units of feed-forward layers: in any order it is the same model."""

from __future__ import annotations

import diffusion_models
import pytest
import torch
from hidden_orders import shuffled

from dpq_core.artifact import Artifact
from dpq_core.tensor.checkpoint import Checkpoint, TensorInfo
from dpq_diffusion.adapter import DiffusionAdapter
from dpq_diffusion.pipelines import probe as probing


class Loaded(Checkpoint):
    """The parameters of a model."""

    def __init__(self, model):
        self.source, self.side_files, self.fingerprint = "loaded", {}, ""
        self._values = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.tensors = {n: TensorInfo(tuple(p.shape), p.dtype) for n, p in self._values.items()}

    def read(self, name):
        return self._values[name]


def _denoised(model):
    return probing._FORWARD[type(model).__name__](
        model, probing._normal(torch.device("cpu"), torch.float32)
    )


def _encoded(model):
    return model(torch.arange(6)[None] + 2)[0]


CASES = {
    "dit": (diffusion_models.dit, _denoised, 3),
    "pixart": (diffusion_models.pixart, _denoised, 1),
    "flux": (diffusion_models.flux, _denoised, 2),
    "unet_condition": (diffusion_models.unet_condition, _denoised, 4),
    "clip": (diffusion_models.text_encoder, _encoded, 1),
    "t5": (diffusion_models.t5_encoder, _encoded, 2),
    "bert": (diffusion_models.bert, _encoded, 2),
}
"""A model, how it is run, and how many hidden axes it has."""


@pytest.mark.parametrize("kind", CASES)
@torch.no_grad()
def test_any_order_is_the_same_model(kind):
    make, forward, count = CASES[kind]
    model = make()
    original = Loaded(model)
    axes = list(DiffusionAdapter().hidden_axes(original))
    assert len(axes) == count
    other = shuffled(original, axes)
    before = forward(model)
    for name, parameter in model.named_parameters():
        parameter.copy_(other.read(name))
    torch.testing.assert_close(forward(model), before, rtol=1e-4, atol=1e-4)
    for axis in axes:
        for name in (axis.consumer, *(one.name for one in axis.producers)):
            assert not torch.equal(other.read(name), original.read(name))


@torch.no_grad()
def test_a_forgotten_bias_would_show():
    """The comparison above can fail."""
    model = diffusion_models.dit()
    before = _denoised(model)
    bias = model.transformer_blocks[1].ff.net[0].proj.bias
    bias.copy_(bias[torch.randperm(len(bias), generator=torch.Generator().manual_seed(0))])
    assert (_denoised(model) - before).abs().max() > 1e-2


def test_blocks_that_mix_in_attention_have_no_axis():
    names = [
        axis.consumer for axis in DiffusionAdapter().hidden_axes(Loaded(diffusion_models.flux()))
    ]
    assert sorted(names) == [
        "transformer_blocks.0.ff.net.2.weight",
        "transformer_blocks.0.ff_context.net.2.weight",
    ]


@pytest.mark.slow
def test_no_order_of_hidden_units_is_stored(dit_folder, make_artifact):
    artifact = Artifact.open(make_artifact(dit_folder))
    block = "transformer/transformer_blocks.1."
    assert "permutation" not in artifact.read_parts(f"{block}ff.net.2.weight")
    assert "permutation" in artifact.read_parts(f"{block}ff.net.0.proj.weight")
