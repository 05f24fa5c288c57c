"""Inception score and precision/recall against plain formulas and `prdc`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from prdc import compute_prdc

from dpq_core.errors import SpecError
from dpq_diffusion.evaluation.inception_score import InceptionScore, inception_score
from dpq_diffusion.evaluation.precision_recall import Distances, precision_recall

pytestmark = pytest.mark.portable


def plain_score(logits, split_size):
    """The definition, split by split."""
    scores = []
    for part in logits.double().softmax(1).split(split_size):
        kl = (part * (part.log() - part.mean(0, keepdim=True).log())).sum(1).mean()
        scores.append(kl.exp().item())
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize("batch", [1, 7, 23, 100])
def test_score_equals_the_definition_for_any_batching(batch):
    logits = 3 * torch.randn(100, 11, generator=torch.Generator().manual_seed(0))
    score = InceptionScore(split_size=30)
    for part in logits.split(batch):
        score.update(part)
    found = score.result()
    assert (found.mean, found.std) == pytest.approx(plain_score(logits, 30), rel=1e-12)
    assert found.splits == 4


def test_score_closed_forms():
    """Sure and varied answers score the number of classes; equal answers score one."""
    sure = 1e3 * torch.eye(8).repeat(3, 1)
    assert inception_score(sure).mean == pytest.approx(8, rel=1e-12)
    assert inception_score(torch.ones(5, 8)).mean == pytest.approx(1, rel=1e-12)


def test_score_refuses():
    with pytest.raises(SpecError, match="score of no images is undefined"):
        inception_score(torch.ones(0, 4))
    with pytest.raises(SpecError, match="NaN or infinite logits"):
        inception_score(torch.tensor([[0.0, math.inf]]))
    with pytest.raises(SpecError, match=r"expected \[N, C\]"):
        inception_score(torch.ones(4))


def two_sets(n=220, m=160, d=6):
    generator = torch.Generator().manual_seed(5)
    reference = torch.randn(n, d, generator=generator)
    samples = 0.8 * torch.randn(m, d, generator=generator) + 0.6
    return reference, samples


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_and_recall_equal_prdc(neighbours):
    reference, samples = two_sets()
    found = precision_recall(reference, samples, neighbours=neighbours)
    peer = compute_prdc(reference.numpy(), samples.numpy(), neighbours)
    assert 0 < found.precision < 1
    assert (found.precision, found.recall) == (peer["precision"], peer["recall"])


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("block", [13, 64, 159])
def test_block_size_does_not_change_the_result(half, block):
    reference, samples = two_sets()
    whole = precision_recall(reference, samples, distances=Distances(half=half))
    parts = precision_recall(reference, samples, distances=Distances(half=half, block=block))
    assert parts == whole


def test_half_precision_is_close_and_falls_back_where_it_overflows():
    reference, samples = two_sets()
    exact = precision_recall(reference, samples)
    coarse = precision_recall(reference, samples, distances=Distances(half=True))
    assert coarse.precision == pytest.approx(exact.precision, abs=0.02)
    assert coarse.recall == pytest.approx(exact.recall, abs=0.02)
    huge = precision_recall(1e3 * reference, 1e3 * samples, distances=Distances(half=True))
    assert huge == precision_recall(1e3 * reference, 1e3 * samples)


def test_half_distances_are_rounded_to_float16():
    a = torch.rand(20, 40, generator=torch.Generator().manual_seed(0))
    ((_, _, block),) = Distances(half=True).pairs(a, a[:7])
    assert torch.equal(block, block.half().float())
    torch.testing.assert_close(block, torch.cdist(a, a[:7]).square(), rtol=0, atol=0.05)


def test_extremes():
    features = torch.randn(30, 3, generator=torch.Generator().manual_seed(2))
    same = precision_recall(features, features.clone())
    assert (same.precision, same.recall) == (1, 1)
    apart = precision_recall(features, features + 100)
    assert (apart.precision, apart.recall) == (0, 0)


def test_collapsed_samples_have_precision_but_no_recall():
    features = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    collapsed = features[:1] + 1e-3 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    found = precision_recall(features, collapsed)
    assert found.precision == 1
    assert found.recall < 0.05


def test_progress_reaches_the_total():
    seen = []
    reference, samples = two_sets(50, 40)
    precision_recall(
        reference,
        samples,
        distances=Distances(block=16),
        progress=lambda what, done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] == len(seen) == 4 * 4 + 3 * 3 + 4 * 3


@pytest.mark.parametrize(
    ("reference", "samples", "message"),
    [
        (torch.ones(3, 2), torch.ones(9, 2), "reference: 3 images are too few.*at least 4"),
        (torch.ones(9, 2), torch.ones(2, 2), "samples: 2 images are too few"),
        (torch.ones(9, 2), torch.ones(9, 3), "2 dimensions, those of the samples 3"),
        (torch.ones(9), torch.ones(9, 3), r"reference: features have shape \[9\]"),
        (torch.ones(9, 2), torch.full((9, 2), torch.nan), "samples: features hold NaN"),
    ],
    ids=["few-reference", "few-samples", "dimensions", "flat", "nan"],
)
def test_precision_and_recall_refuse(reference, samples, message):
    with pytest.raises(SpecError, match=message):
        precision_recall(reference, samples)
