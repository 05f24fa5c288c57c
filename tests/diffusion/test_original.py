"""Original checkpoints: the same outputs in diffusers, the cache, and refusals."""

from __future__ import annotations

import argparse
import collections
import sys
import types
from functools import partial

import diffusion_models
import pytest
import torch
from original_dit import random_dit

from dpq_core.errors import SourceError
from dpq_core.run import Run
from dpq_diffusion.pipelines.conditions import make_items
from dpq_diffusion.pipelines.loading import load_pipeline
from dpq_diffusion.sampling.samplers import RequestedSettings, make_sampler
from dpq_diffusion.source.checkpoint import open_checkpoint
from dpq_diffusion.source.locate import locate

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


def test_it_is_compressed_with_one_embedding(tmp_path):
    checkpoint = open_checkpoint(save(tmp_path / "dit.pt", random_dit(depth=3), WRAPS["ema"]))
    assert sum(".norm1.emb." in name for name in checkpoint.tensors) == 5
    total = sum(info.numel for info in checkpoint.tensors.values())
    weights = random_dit(depth=3).state_dict()
    assert total == sum(value.numel() for value in weights.values()) - weights["pos_embed"].numel()


def test_a_dit_with_an_autoencoder_beside_it_is_a_pipeline(tmp_path):
    source = save(tmp_path / "dit.pt", random_dit(), WRAPS["plain"])
    assert not (locate(source) / "model_index.json").exists()
    with pytest.raises(SourceError, match=r"it lacks vae and scheduler \(of an original"):
        make_sampler(load_pipeline(source, CPU), RequestedSettings())
    diffusion_models.autoencoder().save_pretrained(tmp_path / "vae")
    sampler = make_sampler(load_pipeline(source, CPU), RequestedSettings(steps=2))
    images = sampler.draw(make_items(sampler.conditions(("7",), ()), 1, 0))
    assert images.shape == (1, 8, 8, 3)
    assert images.float().std() > 1


def test_a_dit_on_pixels_is_sampled_on_its_own(tmp_path):
    source = save(tmp_path / "dit.pt", random_dit(channels=1), WRAPS["plain"])
    sampler = make_sampler(load_pipeline(source, CPU), RequestedSettings(steps=2))
    images = sampler.draw(make_items(sampler.conditions(("7",), ()), 2, 0))
    assert images.shape == (2, 8, 8, 1)
    assert not torch.equal(images[0], images[1])


def test_a_conversion_is_made_once_and_leaves_nothing_else(tmp_path, cache):
    source = save(tmp_path / "dit.pt", random_dit(), WRAPS["plain"])
    folder = locate(source)
    before = folder.stat().st_mtime_ns
    assert locate(source) == folder
    assert folder.stat().st_mtime_ns == before
    assert list(cache.iterdir()) == [folder]
    other = random_dit(depth=1)
    assert locate(save(tmp_path / "dit.pt", other, WRAPS["plain"])) != folder


def test_what_trainers_leave_in_their_files_is_passed_over(tmp_path, monkeypatch):
    """PyTorch Lightning stores callbacks under their classes, and omegaconf's settings."""
    kinds = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)
    kinds += ("omegaconf.dictconfig.DictConfig",)
    made, modules = {}, set()
    for path in kinds:
        *parents, name = path.split(".")
        names = [".".join(parents[: end + 1]) for end in range(len(parents))]
        for module in names:
            monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        made[name] = type(name, (), {"__module__": names[-1]})
        setattr(sys.modules[names[-1]], name, made[name])
        modules.update(names)
    settings = made["DictConfig"]()
    settings.content = collections.defaultdict(dict, {"lr": 1e-4, "size": int})

    def wrap(weights):
        callbacks = {made["ModelCheckpoint"]: {"best_model_score": torch.tensor(1.0)}}
        return {"state_dict": weights, "callbacks": callbacks, "hyper_parameters": settings}

    source = save(tmp_path / "dit.pt", random_dit(), wrap)
    for module in modules:
        monkeypatch.delitem(sys.modules, module)
    assert len(open_checkpoint(source).tensors) > 10


def test_files_of_old_torch_are_read(tmp_path):
    file = tmp_path / "dit.pt"
    weights = random_dit().state_dict()
    torch.save(weights, file, _use_new_zipfile_serialization=False)  # noqa: TID251
    assert len(open_checkpoint(str(file)).tensors) > 10


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
