"""The scorer of samples: a feature extractor, and the images or statistics to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dpq_core.errors import ANY, Hint, SpecError
from dpq_core.plugin.builtin import BUILTIN_SCHEME
from dpq_core.plugin.results import Metric
from dpq_core.run import Progress
from dpq_diffusion.evaluation.extractor import FeatureExtractor
from dpq_diffusion.evaluation.inception_weights import load_inception
from dpq_diffusion.evaluation.reference import Reference, read_reference
from dpq_diffusion.evaluation.tiny_classifier import (
    TINY_EXTRACTOR,
    ClassifierExtractor,
    load_classifier,
)
from dpq_diffusion.folders import BUILTIN
from dpq_diffusion.options import EvaluateOptions
from dpq_diffusion.sampling.images import Images

CLASSIFIER = "classifier"
STATISTICS = "reference.safetensors"
"""File of statistics in the folder ``classifier`` of a builtin model (``write_statistics``)."""

_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A feature extractor and the reference that samples are scored against.

    Attributes:
        extractor: turns images into features.
        reference: images or statistics that the features are compared with.
        knows_classes: whether its logits are of the classes that the model draws.
    """

    extractor: FeatureExtractor
    reference: Reference
    knows_classes: bool = False


def find_scorer(
    origin: str, options: EvaluateOptions, device: torch.device, progress: Progress
) -> Scorer | None:
    """The scorer that the user asked for or that ships with a builtin model; None without either.

    Args:
        origin: the uncompressed model, as the user named it.
        options: ``reference`` and ``inception`` count.
        device: where the extractor runs.
        progress: counts bytes of a download.

    Raises:
        SpecError: Inception without a reference.
        SourceError: the reference or the weights cannot be read.
    """
    folder = BUILTIN / origin.removeprefix(BUILTIN_SCHEME) / CLASSIFIER
    ships = origin.startswith(BUILTIN_SCHEME) and folder.is_dir()
    if options.inception and not options.reference_stats:
        raise SpecError(
            "there is nothing to compare the samples with",
            Hint.of("give {} too", reference_stats=ANY),
            option="inception",
        )
    reference = read_reference(Path(options.reference_stats)) if options.reference_stats else None
    stored = None if reference is None else reference.statistics
    of_classifier = stored is not None and stored.extractor == TINY_EXTRACTOR
    if ships and not options.inception and (stored is None or of_classifier):
        extractor = ClassifierExtractor(load_classifier(folder), device=device)
        reference = reference or read_reference(folder / STATISTICS)
        return Scorer(extractor=extractor, reference=reference, knows_classes=True)
    if reference is None:
        return None
    inception = load_inception(options.inception, device=device, progress=progress)
    return Scorer(extractor=inception, reference=reference)


def class_agreement(images: Images, labels: Sequence[int | None], scorer: Scorer) -> Metric:
    """The share of images that the extractor's classifier takes for the class that was drawn.

    Raises:
        SpecError: the extractor has no logits.
        SourceError: an image cannot be read.
    """
    hits, done = 0, 0
    for batch in images.batches(_BATCH):
        logits = scorer.extractor.features(batch).get("logits")
        if logits is None:
            raise SpecError(f"extractor {scorer.extractor.name} does not classify")
        classes = torch.tensor(labels[done : done + len(batch)], device=logits.device)
        hits += int((logits.argmax(1) == classes).sum())
        done += len(batch)
    return Metric(
        name=f"class agreement ({scorer.extractor.name})",
        value=hits / done,
        higher_is_better=True,
        protocol=f"{done:,} samples, extractor {scorer.extractor.name}",
    )
