"""The shipped classifier: what is on disk is what was trained, and damage is one line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpq_core.errors import SourceError
from dpq_diffusion.evaluation.frechet import gaussian
from dpq_diffusion.evaluation.reference import read_reference
from dpq_diffusion.evaluation.scorer import CLASSIFIER, STATISTICS
from dpq_diffusion.evaluation.tiny_classifier import (
    CONFIG,
    TINY_EXTRACTOR,
    WEIGHTS,
    ClassifierConfig,
    TinyClassifier,
    load_classifier,
    save_classifier,
)
from dpq_diffusion.folders import BUILTIN

SMALL = ClassifierConfig(image_size=8, widths=(4, 6, 8), feature_dim=5, num_classes=3)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_classifier(TinyClassifier(SMALL), tmp_path)
    return tmp_path


def test_it_survives_saving(folder):
    model = load_classifier(folder)
    assert model.config == SMALL
    assert not model.training
    images = torch.rand(2, 1, 8, 8)
    assert model(images).shape == (2, 3)


def edit(folder, **changes):
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**content, **changes}))


def cut(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def reshape(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["head.weight"] = torch.zeros(4, 5)
    save_file(tensors, folder / WEIGHTS)


def drop(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors["head.bias"]
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / CONFIG).unlink(), "config.json: not a readable classifier configuration"),
        (lambda f: (f / CONFIG).write_text("{"), "config.json: not a readable classifier"),
        (lambda f: (f / CONFIG).write_text("[]"), "expected exactly the keys architecture"),
        (lambda f: edit(f, surprise=1), "expected exactly the keys architecture"),
        (lambda f: edit(f, architecture="ResNet"), "the architecture is not TinyClassifier"),
        (lambda f: edit(f, widths=[4, 6]), "'widths' is not a list of three sizes"),
        (lambda f: edit(f, feature_dim=0), "every size is an integer from 1 to 4096"),
        (lambda f: edit(f, image_size=True), "every size is an integer from 1 to 4096"),
        (lambda f: (f / WEIGHTS).unlink(), "model.safetensors: not the weights of"),
        (cut, "model.safetensors: not the weights of"),
        (reshape, "size mismatch for head.weight"),
        (drop, "Missing key"),
    ],
    ids=[
        "no-config",
        "bad-json",
        "no-object",
        "unknown-key",
        "architecture",
        "widths",
        "zero",
        "bool",
        "no-weights",
        "truncated",
        "shape",
        "missing-tensor",
    ],
)
def test_damage_is_one_line(damage, words, folder):
    damage(folder)
    with pytest.raises(SourceError) as caught:
        load_classifier(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shipped_reference_is_in_the_format_of_every_reference():
    reference = read_reference(BUILTIN / "tiny-dit" / CLASSIFIER / STATISTICS)
    assert reference.images is None
    found = reference.statistics
    assert found is not None
    assert found.extractor == TINY_EXTRACTOR
    assert found.features is not None
    assert found.features.shape == (2000, 64)
    assert found.pool.count == 10_000
    some = gaussian(found.features)  # a fifth of them: a mean within five standard errors
    error = (some.covariance.diagonal() / len(found.features)).sqrt()
    assert ((some.mean - found.pool.mean).abs() <= 5 * error).all()


def test_everything_shipped_with_it_is_small():
    files = [path for path in (BUILTIN / "tiny-dit").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6
