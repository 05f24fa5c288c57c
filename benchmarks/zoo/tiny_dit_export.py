"""Pipeline folder of ``builtin:tiny-dit``: weights, scheduler, samples, model card."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from fashion_mnist import LABELS, Split, to_model_range
from tiny_dit_card import Facts, card
from tiny_dit_model import BETA_END, BETA_START, TIMESTEPS
from tiny_dit_recipe import Progress, Recipe
from tiny_dit_sample import (
    Sampling,
    accuracy,
    agreement,
    balanced_labels,
    quantized_to_uint8,
    sample,
    save_grid,
)

from dpq_diffusion.evaluation.frechet import Gaussian, frechet_distance, gaussian
from dpq_diffusion.evaluation.reference import read_reference
from dpq_diffusion.evaluation.scorer import STATISTICS
from dpq_diffusion.evaluation.tiny_classifier import TinyClassifier, load_classifier

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, DiTTransformer2DModel

GRID = "samples.png"
GRID_COLUMNS = 8
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
PIPELINE = "PixelDiTPipeline"


def build_scheduler() -> DDIMScheduler:
    """Returns the sampler stored in the folder, which has the process of the training."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="linear",
        prediction_type="v_prediction",
        # Clipping the predicted image without recomputing the noise from it, as diffusers does,
        # spoils guided samples: they grow bright patches where the background was overshot.
        clip_sample=False,
    )


def write_pipeline(folder: Path, model: DiTTransformer2DModel) -> None:
    """Writes float16 weights, scheduler and index, each as diffusers reads them.

    Args:
        folder: Existing folder.
        model: The model; blocks may share their embedder, the file has a copy for each.
    """
    import diffusers

    copies = type(model).from_config(model.config)
    copies.load_state_dict(model.state_dict())
    copies.half().save_pretrained(folder / "transformer")
    build_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": PIPELINE,
        "_diffusers_version": diffusers.__version__,
        "id2label": {str(label): name for label, name in enumerate(LABELS)},
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


@torch.no_grad()
def measure(
    folder: Path, classifier_folder: Path, splits: Mapping[str, Split], how: Sampling
) -> tuple[Facts, torch.Tensor]:
    """Samples from the weights as written and scores the samples.

    Args:
        folder: The pipeline folder, whose weights are run under bfloat16 autocast.
        classifier_folder: The classifier and its reference statistics.
        splits: ``train``, whose first images show what real ones score, and ``test``.
        how: How to sample.

    Returns:
        The facts, and the samples, class by class, in [-1, 1].
    """
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel.from_pretrained(folder / "transformer", dtype=torch.float32)
    classifier = load_classifier(classifier_folder)
    reference = read_reference(classifier_folder / STATISTICS).statistics
    assert reference is not None
    labels = balanced_labels(how.per_class)
    with torch.autocast("cpu", torch.bfloat16):
        images = quantized_to_uint8(sample(model.eval(), build_scheduler(), labels, how))
    real = to_model_range(splits["train"].images[: len(labels)])
    copied = model.transformer_blocks[0].norm1.emb
    parameters = sum(p.numel() for p in model.parameters())
    copies = sum(p.numel() for p in copied.parameters()) * (len(model.transformer_blocks) - 1)
    facts = Facts(
        parameters=parameters,
        unique=parameters - copies,
        weight_bytes=(folder / WEIGHTS).stat().st_size,
        agreement=agreement(classifier, images, labels).tolist(),
        distance=_distance(classifier, images, reference.pool),
        floor=_distance(classifier, real, reference.pool),
        accuracy=accuracy(classifier, splits["test"]),
    )
    return facts, images


def export(
    out: Path,
    model: DiTTransformer2DModel,
    recipe: Recipe,
    progress: Progress,
    splits: Mapping[str, Split],
    how: Sampling,
) -> Facts:
    """Writes the complete pipeline folder, replacing each file atomically.

    Args:
        out: The folder; ``out/classifier`` is there already and stays as it is.
        model: The model with its float32 weights.
        recipe: Data and settings of the run.
        progress: Progress of the run.
        splits: ``train`` and ``test``.
        how: How to sample for the model card.

    Returns:
        What was measured of the exported weights.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as name:
        folder = Path(name)
        write_pipeline(folder, model)
        facts, images = measure(folder, out / "classifier", splits, how)
        columns = min(GRID_COLUMNS, how.per_class)
        shown = images.view(len(LABELS), how.per_class, *images.shape[1:])[:, :columns]
        save_grid(folder / GRID, shown.flatten(0, 1), columns)
        (folder / "README.md").write_text(card(recipe, progress, facts, how, GRID), "utf-8")
        log = "".join(json.dumps(row) + "\n" for row in progress.log)
        (folder / "training_log.jsonl").write_text(log)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                target = out / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.chmod(0o644)
                path.replace(target)
    return facts


def _distance(classifier: TinyClassifier, images: torch.Tensor, reference: Gaussian) -> float:
    features = torch.cat([classifier.features(part) for part in images.split(500)])
    return frechet_distance(gaussian(features), reference)
