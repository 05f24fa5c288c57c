"""Our numbers, recomputed with other tools from the files that ``dpq sample`` leaves."""

from __future__ import annotations

import diffusion_pipelines
import numpy as np
import pytest
import torch
from PIL import Image
from prdc import compute_prdc
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image.fid import FrechetInceptionDistance

from dpq_core.run import Run
from dpq_diffusion.evaluation import evaluate as evaluation
from dpq_diffusion.evaluation.evaluate import evaluate
from dpq_diffusion.evaluation.tiny_classifier import ClassifierConfig, TinyClassifier
from dpq_diffusion.folders import BUILTIN as SHIPPED
from dpq_diffusion.options import EvaluateOptions, SampleOptions
from dpq_diffusion.sampling import sample as sampling

RUN = Run(device="cpu", seed=3)
BUILTIN = "builtin:tiny-dit"
COUNT, CLASSES = 40, 10
CLASSIFIER = SHIPPED / "tiny-dit" / "classifier"

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"  # diffusers
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Samples of a small model and of the same model disturbed, and what `dpq eval` says."""
    digits = tuple(str(number) for number in range(CLASSES))
    known = {
        BUILTIN: diffusion_pipelines.pixel_dit(classes=digits, side=28),
        "compressed": diffusion_pipelines.disturbed(
            diffusion_pipelines.pixel_dit(classes=digits, side=28), 0.2
        ),
    }
    place = tmp_path_factory.mktemp("samples")
    mine, theirs = place / "mine", place / "theirs"
    with pytest.MonkeyPatch.context() as patch:
        for module in (evaluation, sampling):
            patch.setattr(module, "load_pipeline", lambda source, run: known[source])
        patch.setattr(evaluation, "origin_of", lambda source: BUILTIN)
        options = SampleOptions(sampling_steps=3, count=COUNT, npz=True)
        sampling.sample("compressed", options, RUN, mine)
        sampling.sample(BUILTIN, options, RUN, theirs)
        known["compressed"].transformer.forward = None  # what is scored are the files
        wish = EvaluateOptions(
            sampling_steps=3,
            count=COUNT,
            folder=str(mine),
            baseline=str(theirs),
            baseline_count=COUNT,
        )
        found = evaluate("compressed", wish, RUN)
    return mine, theirs, {m.name: m.value for m in found.metrics}


def batch(folder) -> np.ndarray:
    """The images of ``samples.npz``; they are those of the PNG files."""
    images = np.load(folder / "samples.npz")["arr_0"]
    assert images.shape == (COUNT, 28, 28, 3)
    assert images.dtype == np.uint8
    pngs = sorted((folder / "images").glob("*.png"))
    assert np.array_equal(images, [np.asarray(Image.open(p).convert("RGB")) for p in pngs])
    return images


class Features(nn.Module):
    """The shipped classifier without our reader and without our extractor."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.model = TinyClassifier(ClassifierConfig()).eval()
        self.model.load_state_dict(load_file(CLASSIFIER / "model.safetensors"))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = self.model.features(images[:, :1].float() / 127.5 - 1)
        return found.double()


@pytest.mark.slow
def test_frechet_distance_precision_and_recall(folders):
    mine, _, metrics = folders
    planes = torch.from_numpy(batch(mine)).permute(0, 3, 1, 2)
    with safe_open(CLASSIFIER / "reference.safetensors", "pt") as file:
        reference = file.get_tensor("features").numpy()
        mean, covariance = file.get_tensor("mu"), file.get_tensor("sigma")
    peer = FrechetInceptionDistance(feature=Features(), normalize=False)
    peer.update(planes, real=False)
    # The other side from its statistics: torchmetrics keeps the sums.
    count = 10_000
    peer.real_features_sum = count * mean
    peer.real_features_cov_sum = (count - 1) * covariance + count * torch.outer(mean, mean)
    peer.real_features_num_samples = torch.tensor(count)
    name = "Frechet distance (tiny-classifier)"
    assert metrics[name] == pytest.approx(peer.compute().item(), rel=1e-5)
    shares = compute_prdc(reference, Features()(planes).numpy(), 3)
    # prdc takes float64 distances: an image on the rim of a ball may fall on the other side.
    assert metrics["precision (tiny-classifier)"] == pytest.approx(shares["precision"], abs=0.03)
    assert metrics["recall (tiny-classifier)"] == pytest.approx(shares["recall"], abs=1e-3)


@pytest.mark.slow
def test_class_agreement_and_classifier_score(folders):
    mine, _, metrics = folders
    planes = torch.from_numpy(batch(mine)).permute(0, 3, 1, 2)
    network = Features()
    with torch.no_grad():
        shares = network.model.head(network(planes).float()).double().softmax(1)
    labels = [
        int(Image.open(path).text["class"]) for path in sorted((mine / "images").glob("*.png"))
    ]
    assert labels == [index % CLASSES for index in range(COUNT)]
    hits = (shares.argmax(1) == torch.tensor(labels)).double().mean().item()
    assert metrics["class agreement (tiny-classifier)"] == pytest.approx(hits)
    gain = (shares * (shares / shares.mean(0)).log()).sum(1).mean().exp().item()
    assert metrics["classifier score (tiny-classifier)"] == pytest.approx(gain, rel=1e-5)


@pytest.mark.slow
def test_psnr_and_ssim(folders):
    mine, theirs, metrics = folders
    a, b = (torch.from_numpy(batch(f)).permute(0, 3, 1, 2).double() for f in (mine, theirs))
    psnr = peak_signal_noise_ratio(a, b, data_range=255.0)
    assert metrics["PSNR to the uncompressed model"] == pytest.approx(psnr.item(), rel=1e-6)
    ssim = structural_similarity_index_measure(a / 255, b / 255, data_range=1.0)
    assert metrics["SSIM to the uncompressed model"] == pytest.approx(ssim.item(), rel=1e-6)
