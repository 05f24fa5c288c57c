"""From image sets to metrics: names, protocols, references, and the numbers themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpq_core.errors import SpecError
from dpq_diffusion.evaluation.extractor import ADM_EXTRACTOR
from dpq_diffusion.evaluation.frechet import frechet_distance, gaussian
from dpq_diffusion.evaluation.inception_score import inception_score
from dpq_diffusion.evaluation.precision_recall import precision_recall
from dpq_diffusion.evaluation.quality import evaluate_samples, extract
from dpq_diffusion.evaluation.reference import (
    Reference,
    Statistics,
    read_reference,
    write_statistics,
)
from dpq_diffusion.evaluation.tiny_classifier import (
    ClassifierConfig,
    ClassifierExtractor,
    TinyClassifier,
)
from dpq_diffusion.sampling.images import ArrayImages
from dpq_diffusion.sampling.npz import write_arrays


class Linear:
    """A seeded linear extractor: pool, spatial and logits of 8x8 images."""

    def __init__(self, name="linear", spatial=True, logits=True):
        self.name = name
        generator = torch.Generator().manual_seed(0)
        self._maps = [torch.randn(192, d, generator=generator) / 192 for d in (9, 5, 4)]
        self._spatial, self._logits = spatial, logits

    def features(self, images):
        assert images.dtype == torch.uint8
        pool, spatial, logits = (images.flatten(1).float() @ m for m in self._maps)
        found = {"pool": pool}
        if self._spatial:
            found["spatial"] = spatial
        if self._logits:
            found["logits"] = logits
        return found


def pictures(n, seed, low=0, high=256):
    generator = np.random.default_rng(seed)
    return generator.integers(low, high, (n, 8, 8, 3), dtype=np.uint8)


SAMPLES = pictures(60, 1, 20, 250)
REAL = pictures(80, 2)


def by_name(metrics):
    return {metric.name: metric for metric in metrics}


def test_all_numbers_against_their_functions():
    extractor = Linear()
    found = by_name(
        evaluate_samples(
            ArrayImages(SAMPLES), Reference(name="real", images=ArrayImages(REAL)), extractor
        )
    )
    mine, real = (extractor.features(torch.from_numpy(x)) for x in (SAMPLES, REAL))
    shares = precision_recall(real["pool"], mine["pool"])
    expected = {
        "Frechet distance (linear)": frechet_distance(
            gaussian(mine["pool"]), gaussian(real["pool"])
        ),
        "spatial Frechet distance (linear)": frechet_distance(
            gaussian(mine["spatial"]), gaussian(real["spatial"])
        ),
        "classifier score (linear)": inception_score(mine["logits"]).mean,
        "precision (linear)": shares.precision,
        "recall (linear)": shares.recall,
    }
    assert {name: m.value for name, m in found.items()} == pytest.approx(expected, rel=1e-5)
    assert {name: m.higher_is_better for name, m in found.items()} == {
        name: "distance" not in name for name in expected
    }
    assert found["Frechet distance (linear)"].protocol == (
        "60 samples, 80 images of real, extractor linear"
    )
    assert found["precision (linear)"].protocol == (
        "3 neighbours, 60 samples and 80 images of real, float32 distances, extractor linear"
    )


def test_the_plain_names_belong_to_the_adm_extractor():
    found = evaluate_samples(
        ArrayImages(SAMPLES),
        Reference(name="real", images=ArrayImages(REAL)),
        Linear(ADM_EXTRACTOR),
    )
    assert [m.name for m in found] == ["FID", "sFID", "IS", "precision", "recall"]
    assert all(m.protocol.endswith(f"extractor {ADM_EXTRACTOR}") for m in found)
    assert "float16 distances" in by_name(found)["precision"].protocol
    other = evaluate_samples(
        ArrayImages(SAMPLES), Reference(name="real", images=ArrayImages(REAL)), Linear("x")
    )
    assert all(m.name.endswith(" (x)") for m in other)


def test_features_that_an_extractor_lacks_leave_their_metrics_out():
    found = evaluate_samples(
        ArrayImages(SAMPLES),
        Reference(name="real", images=ArrayImages(REAL)),
        Linear(spatial=False, logits=False),
    )
    assert [m.name for m in found] == [
        "Frechet distance (linear)",
        "precision (linear)",
        "recall (linear)",
    ]


def test_batch_size_does_not_matter():
    sets = ArrayImages(SAMPLES), Reference(name="real", images=ArrayImages(REAL)), Linear()
    one = [m.value for m in evaluate_samples(*sets, batch_size=7)]
    assert one == pytest.approx([m.value for m in evaluate_samples(*sets)], rel=1e-5)


def test_progress_names_both_sets():
    seen = {}
    evaluate_samples(
        ArrayImages(SAMPLES, "mine"),
        Reference(name="real", images=ArrayImages(REAL, "real")),
        Linear(),
        progress=lambda what, done, total: seen.update({what: (done, total)}),
    )
    assert seen["features of mine"] == (60, 60)
    assert seen["features of real"] == (80, 80)


def adm_reference(path, extractor, **replaced):
    """A reference batch with statistics of all and images of half of the set."""
    found = extract(ArrayImages(REAL), extractor).statistics
    arrays = {
        "arr_0": REAL[:40],
        "mu": found.pool.mean.numpy(),
        "sigma": found.pool.covariance.numpy(),
        "mu_s": found.spatial.mean.numpy(),
        "sigma_s": found.spatial.covariance.numpy(),
    } | replaced
    write_arrays(path, {name: array for name, array in arrays.items() if array is not None})


def test_stored_statistics_of_an_adm_batch_are_used_and_its_images_for_recall(tmp_path):
    extractor = Linear(ADM_EXTRACTOR)
    adm_reference(tmp_path / "ref.npz", extractor)
    whole = by_name(
        evaluate_samples(
            ArrayImages(SAMPLES), Reference(name="r", images=ArrayImages(REAL)), extractor
        )
    )
    found = by_name(
        evaluate_samples(ArrayImages(SAMPLES), read_reference(tmp_path / "ref.npz"), extractor)
    )
    for name in ("FID", "sFID", "IS"):
        assert found[name].value == pytest.approx(whole[name].value, rel=1e-9)
    assert found["FID"].protocol.startswith("60 samples, statistics of ref.npz")
    assert "60 samples and 40 images of ref.npz" in found["recall"].protocol


def test_statistics_of_another_extractor_are_never_used(tmp_path):
    adm_reference(tmp_path / "ref.npz", Linear(ADM_EXTRACTOR), mu=np.full(9, 1e6))
    found = by_name(
        evaluate_samples(ArrayImages(SAMPLES), read_reference(tmp_path / "ref.npz"), Linear())
    )
    assert found["Frechet distance (linear)"].value < 1e3  # computed from the images
    assert "40 images" in found["Frechet distance (linear)"].protocol
    adm_reference(tmp_path / "ref.npz", Linear(ADM_EXTRACTOR), arr_0=None)
    with pytest.raises(SpecError, match=r"statistics of extractor 'adm-.*', not of 'linear'"):
        evaluate_samples(ArrayImages(SAMPLES), read_reference(tmp_path / "ref.npz"), Linear())


@pytest.mark.parametrize("keep_features", [False, True])
def test_statistics_survive_safetensors(tmp_path, keep_features):
    path = tmp_path / "new" / "ref.safetensors"
    extractor = Linear()
    found = extract(ArrayImages(REAL), extractor, keep_features=keep_features).statistics
    write_statistics(path, found)
    read = read_reference(path).statistics
    assert read.extractor == "linear"
    assert read.pool.count == read.spatial.count == 80
    assert torch.equal(read.pool.covariance, found.pool.covariance)
    assert torch.equal(read.spatial.mean, found.spatial.mean)
    metrics = evaluate_samples(ArrayImages(SAMPLES), read_reference(path), extractor)
    direct = evaluate_samples(
        ArrayImages(SAMPLES), Reference(name="r", images=ArrayImages(REAL)), extractor
    )
    count = 5 if keep_features else 3
    assert [m.value for m in metrics] == pytest.approx([m.value for m in direct][:count])


def test_statistics_survive_the_adm_npz(tmp_path):
    found = extract(ArrayImages(REAL), Linear(ADM_EXTRACTOR)).statistics
    write_statistics(tmp_path / "ref.npz", found)
    read = read_reference(tmp_path / "ref.npz").statistics
    assert torch.equal(read.pool.covariance, found.pool.covariance)
    assert torch.equal(read.spatial.covariance, found.spatial.covariance)
    assert (read.extractor, read.pool.count) == (ADM_EXTRACTOR, None)
    other = extract(ArrayImages(REAL), Linear()).statistics
    with pytest.raises(SpecError, match=r"names no extractor.*write \.safetensors"):
        write_statistics(tmp_path / "ref.npz", other)
    with pytest.raises(SpecError, match=r"written as \.safetensors or \.npz"):
        write_statistics(tmp_path / "ref.pt", other)


def test_a_reference_of_another_resolution():
    other = Reference(name="ref512.npz", images=ArrayImages(np.zeros((4, 16, 16, 3), np.uint8)))
    with pytest.raises(SpecError, match=r"ref512\.npz holds 16x16 images but the samples are 8x8"):
        evaluate_samples(ArrayImages(SAMPLES), other, Linear())


def test_too_few_samples():
    reference = Reference(name="real", images=ArrayImages(REAL))
    with pytest.raises(SpecError, match="1 samples; a covariance needs at least 2"):
        evaluate_samples(ArrayImages(SAMPLES[:1]), reference, Linear())
    with pytest.raises(SpecError, match="3 images are too few for precision and recall"):
        evaluate_samples(ArrayImages(SAMPLES[:3]), reference, Linear())


def test_an_empty_reference():
    with pytest.raises(SpecError, match="holds neither images nor statistics"):
        evaluate_samples(ArrayImages(SAMPLES), Reference(name="r"), Linear())


def test_statistics_need_no_images():
    found = extract(ArrayImages(REAL), Linear(spatial=False)).statistics
    reference = Reference(name="r", statistics=Statistics(extractor="linear", pool=found.pool))
    names = [m.name for m in evaluate_samples(ArrayImages(SAMPLES), reference, Linear())]
    assert names == ["Frechet distance (linear)", "classifier score (linear)"]


def test_the_tiny_classifier_extracts_its_own_features():
    torch.manual_seed(0)
    model = TinyClassifier(
        ClassifierConfig(image_size=8, widths=(4, 6, 8), feature_dim=5, num_classes=3)
    )
    extractor = ClassifierExtractor(model)
    grey = torch.from_numpy(pictures(10, 0)[..., :1])
    found = extractor.features(grey.expand(-1, -1, -1, 3))
    direct = model.eval().features(grey.permute(0, 3, 1, 2).float() / 127.5 - 1)
    torch.testing.assert_close(found["pool"], direct.detach())
    torch.testing.assert_close(found["logits"], model.head(direct).detach())
    names = [
        m.name
        for m in evaluate_samples(
            ArrayImages(SAMPLES), Reference(name="r", images=ArrayImages(REAL)), extractor
        )
    ]
    assert names[0] == "Frechet distance (tiny-classifier)"
    with pytest.raises(SpecError, match="takes 8x8 images, not 9x8"):
        extractor.features(torch.zeros(1, 9, 8, 3, dtype=torch.uint8))
