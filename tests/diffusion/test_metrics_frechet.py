"""Gaussian statistics and the Frechet distance: closed forms and independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from dpq_core.errors import SpecError
from dpq_diffusion.evaluation.frechet import (
    Gaussian,
    GaussianAccumulator,
    frechet_distance,
    gaussian,
)

pytestmark = pytest.mark.portable


def clouds(n, d, seed=0):
    """Two correlated, shifted sets of features float32 ``[n, d]``."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator) / math.sqrt(d)
    a = torch.randn(n, d, generator=generator) @ mixing + 3
    b = 1.3 * torch.randn(n, d, generator=generator) @ mixing.T + 3.2
    return a, b


def by_sqrtm(a, b):
    """The formula as the ADM evaluator has it, with scipy's matrix square root."""
    a, b = a.double().numpy(), b.double().numpy()
    offset = a.mean(0) - b.mean(0)
    c1, c2 = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = scipy.linalg.sqrtm(c1 @ c2)
    return offset @ offset + np.trace(c1) + np.trace(c2) - 2 * np.trace(root).real


def test_statistics_are_those_of_numpy():
    a, _ = clouds(50, 7)
    found = gaussian(a)
    np.testing.assert_allclose(found.mean, a.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(a.double().numpy().T), rtol=1e-12)
    assert found.count == 50


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda s: sum(s) >= 2),
    offset=st.sampled_from([0.0, 1e4]),
)
@settings(max_examples=40, deadline=None)
def test_streaming_equals_one_batch(sizes, offset):
    features = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(1)).double()
    accumulator = GaussianAccumulator()
    for part in (features + offset).split(sizes):
        accumulator.update(part)
    found = accumulator.result()
    expected = torch.cov(features.T)
    torch.testing.assert_close(found.covariance, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.mean, features.mean(0) + offset, rtol=1e-12, atol=1e-12)


def test_result_is_a_copy():
    accumulator = GaussianAccumulator()
    accumulator.update(torch.eye(3))
    before = accumulator.result()
    kept = before.mean.clone()
    accumulator.update(torch.ones(2, 3))
    assert torch.equal(before.mean, kept)


@pytest.mark.parametrize("variances", [(1.0, 4.0), (0.0, 4.0), (0.0, 0.0), (1e-8, 1e8)])
def test_closed_form_of_commuting_covariances(variances):
    """For diagonal covariances the distance is sum (m1 - m2)^2 + (s1 - s2)^2."""
    v1, v2 = variances
    a = Gaussian(torch.tensor([1.0, 2.0]).double(), torch.diag(torch.tensor([v1, 9.0]).double()))
    b = Gaussian(torch.tensor([4.0, 2.0]).double(), torch.diag(torch.tensor([v2, 1.0]).double()))
    expected = 9 + (math.sqrt(v1) - math.sqrt(v2)) ** 2 + 4
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("d", [1, 5, 64])
def test_equals_the_matrix_square_root(d):
    a, b = clouds(400, d)
    expected = by_sqrtm(a, b)
    assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(expected, rel=1e-9)


def test_equals_torchmetrics_on_the_same_features():
    class Pixels(nn.Module):
        num_features = 12

        def forward(self, images):
            return images.flatten(1).double()

    generator = torch.Generator().manual_seed(3)
    real = torch.randint(0, 200, (60, 3, 2, 2), dtype=torch.uint8, generator=generator)
    fake = torch.randint(40, 256, (50, 3, 2, 2), dtype=torch.uint8, generator=generator)
    peer = FrechetInceptionDistance(feature=Pixels())
    peer.set_dtype(torch.float64)
    peer.update(real, real=True)
    peer.update(fake, real=False)
    found = frechet_distance(gaussian(real.flatten(1)), gaussian(fake.flatten(1)))
    assert found == pytest.approx(peer.compute().item(), rel=1e-6)


@pytest.mark.parametrize("n", [2, 10, 40], ids="{}-images".format)
def test_singular_covariances(n):
    """Fewer images than dimensions: still symmetric, zero for equals, right for a pure shift."""
    a, b = clouds(n, 32)
    one, two = gaussian(a), gaussian(b)
    scale = one.covariance.trace().item()
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6 * scale)
    assert frechet_distance(one, two) == pytest.approx(frechet_distance(two, one), abs=1e-6 * scale)
    shifted = frechet_distance(one, gaussian(a.double() + 2))
    assert shifted == pytest.approx(32 * 4, abs=1e-6 * scale)


def test_singular_against_full_rank_is_the_limit_of_regularised_ones():
    """The covariance that has a factor is factored, whichever side it is on."""
    full, few = clouds(100, 16)[0], clouds(5, 16, seed=1)[1]
    one, two = gaussian(full), gaussian(few)
    near = Gaussian(two.mean, two.covariance + 1e-12 * torch.eye(16))
    assert frechet_distance(one, two) == pytest.approx(frechet_distance(one, near), rel=1e-4)
    assert frechet_distance(two, one) == pytest.approx(frechet_distance(one, two), rel=1e-6)


def test_the_mean_far_from_zero_costs_no_precision():
    a, b = (x.double() for x in clouds(100, 8))
    near = frechet_distance(gaussian(a), gaussian(b))
    assert frechet_distance(gaussian(a + 1e6), gaussian(b + 1e6)) == pytest.approx(near, rel=1e-6)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(1, 3), "1 images have no covariance; give at least 2"),
        (torch.ones(0, 3), "0 images have no covariance"),
        (torch.ones(4), r"shape \[4\]; expected \[N, D\]"),
        (torch.tensor([[1.0], [torch.nan]]), "NaN or infinite features"),
    ],
    ids=["one", "none", "flat", "nan"],
)
def test_bad_features(features, message):
    with pytest.raises(SpecError, match=message):
        gaussian(features)


def test_bad_dimensions():
    accumulator = GaussianAccumulator()
    accumulator.update(torch.ones(2, 3))
    with pytest.raises(SpecError, match="features have 4 dimensions, earlier ones 3"):
        accumulator.update(torch.ones(2, 4))
    with pytest.raises(SpecError, match=r"3 and 4 dimensions.*same feature extractor"):
        frechet_distance(gaussian(torch.eye(3)), gaussian(torch.eye(4)))
    with pytest.raises(SpecError, match="do not belong together"):
        Gaussian(torch.ones(3), torch.ones(2, 2))
    with pytest.raises(SpecError, match="NaN or infinity"):
        Gaussian(torch.ones(1), torch.full((1, 1), torch.inf))
