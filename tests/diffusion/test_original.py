"""Original checkpoints: the same outputs in diffusers, the cache, and refusals."""

from __future__ import annotations

import argparse
from functools import partial

import pytest
import torch
from original_dit import random_dit

from dpq_core.adapter import Run
from dpq_core.errors import SourceError
from dpq_diffusion.folders import locate
from dpq_diffusion.loading import load_pipeline
from dpq_diffusion.source import open_checkpoint

CPU = Run(device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dpq" / "converted"


def save(path, model, wrap):
    torch.save(wrap(model.state_dict()), path)  # noqa: TID251 - what other people's files are
    return str(path)


WRAPS = {
    "plain": lambda weights: weights,
    "ema": lambda weights: {
        "model": {name: 0 * value for name, value in weights.items()},
        "ema": weights,
        "args": argparse.Namespace(epochs=1),
    },
    "model": lambda weights: {"model": weights, "step": 3},
}


@torch.no_grad()
@pytest.mark.parametrize("wrap", WRAPS)
def test_the_converted_model_computes_the_same(wrap, tmp_path):
    original = random_dit()
    model = load_pipeline(save(tmp_path / "dit.pt", original, WRAPS[wrap]), CPU)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([3, 700]), torch.tensor([5, 40])
    found = model(x, timestep=t, class_labels=y).sample
    # diffusers computes the timestep's frequencies otherwise, in its own conversions too.
    torch.testing.assert_close(found, original(x, t, y, shift=1), rtol=1e-4, atol=1e-5)
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    found = model(x, timestep=t, class_labels=y).sample
    torch.testing.assert_close(found, original(x, t, y), rtol=1e-4, atol=1e-5)


LDM_BLOCKS = {
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
LDM_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def ldm_name(name: str) -> str:
    """The name that CompVis gives a tensor of diffusers' UNet with two resolutions."""
    block = next(key for key in LDM_BLOCKS if name.startswith(f"{key}."))
    rest = name.removeprefix(f"{block}.")
    if "resnets" in block:
        layer, _, part = rest.rpartition(".")
        rest = f"{LDM_LAYERS[layer]}.{part}"
    return f"model.diffusion_model.{LDM_BLOCKS[block]}.{rest}"


@torch.no_grad()
@pytest.mark.parametrize("averaged", [False, True])
def test_a_converted_ldm_unet_computes_the_same(averaged, tmp_path):
    from diffusion_models import unet_condition

    expected = unet_condition(groups=32)
    weights = {ldm_name(name): value for name, value in expected.state_dict().items()}
    if averaged:
        for name in list(weights):
            flat = "model_ema." + "".join(name.split(".")[1:])
            weights[flat], weights[name] = weights[name], torch.zeros_like(weights[name])
    weights["first_stage_model.encoder.conv_in.weight"] = torch.ones(2, 2)
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": weights, "global_step": 1}, file)  # noqa: TID251
    model = load_pipeline(str(file), CPU)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    prompt = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([7])
    assert torch.equal(model(x, t, prompt).sample, expected(x, t, prompt).sample)


def test_it_is_compressed_with_one_embedding(tmp_path):
    checkpoint = open_checkpoint(save(tmp_path / "dit.pt", random_dit(depth=3), WRAPS["ema"]))
    assert sum(".norm1.emb." in name for name in checkpoint.tensors) == 5
    total = sum(info.numel for info in checkpoint.tensors.values())
    weights = random_dit(depth=3).state_dict()
    assert total == sum(value.numel() for value in weights.values()) - weights["pos_embed"].numel()


def test_a_conversion_is_made_once_and_leaves_nothing_else(tmp_path, cache):
    source = save(tmp_path / "dit.pt", random_dit(), WRAPS["plain"])
    folder = locate(source)
    before = folder.stat().st_mtime_ns
    assert locate(source) == folder
    assert folder.stat().st_mtime_ns == before
    assert list(cache.iterdir()) == [folder]
    other = random_dit(depth=1)
    assert locate(save(tmp_path / "dit.pt", other, WRAPS["plain"])) != folder


BAD = {
    "code": (
        lambda weights: {"model": weights, "thing": partial(print)},
        "holds more than tensors",
    ),
    "list": (lambda weights: [1, 2], "no state dict in it, but list"),
    "nested": (lambda weights: {"a": 1}, "not a plain state dict, 'a' is not a tensor"),
    "other": (lambda weights: {"w": torch.ones(2)}, "neither a DiT nor an LDM"),
    "missing": (
        lambda weights: {k: v for k, v in weights.items() if k != "blocks.1.mlp.fc1.bias"},
        r"not a complete checkpoint \('blocks\.1\.mlp\.fc1\.bias'\)",
    ),
    "surplus": (lambda weights: {**weights, "zzz": torch.ones(2)}, "'zzz' has no place"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_a_dit_is_refused_in_one_line(kind, tmp_path, cache):
    wrap, message = BAD[kind]
    source = save(tmp_path / "dit.pt", random_dit(), wrap)
    with pytest.raises(SourceError, match=message) as caught:
        open_checkpoint(source)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())


def test_files_that_are_no_checkpoints(tmp_path):
    broken = tmp_path / "dit.pt"
    broken.write_bytes(b"not a pickle")
    with pytest.raises(SourceError, match="not a readable checkpoint") as caught:
        open_checkpoint(str(broken))
    assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match="no such file or folder"):
        open_checkpoint(str(tmp_path / "gone.pt"))
    with pytest.raises(SourceError, match=r"a file; give a diffusers folder"):
        open_checkpoint(__file__)
