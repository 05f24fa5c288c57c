"""Metrics of sets of images by the ADM recipe: one pass per set, each number with its protocol."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.plugin.results import Metric
from dpq_core.run import Progress, silent
from dpq_diffusion.evaluation.extractor import ADM_EXTRACTOR, FeatureExtractor
from dpq_diffusion.evaluation.frechet import Gaussian, GaussianAccumulator, frechet_distance
from dpq_diffusion.evaluation.inception_score import (
    SPLIT_SIZE,
    InceptionScore,
    Score,
)
from dpq_diffusion.evaluation.precision_recall import (
    NEIGHBOURS,
    Distances,
    PrecisionRecall,
    precision_recall,
)
from dpq_diffusion.evaluation.reference import Reference, Statistics
from dpq_diffusion.sampling.images import Images

BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class ExtractedFeatures:
    """The features and logits of a set of images, summed up in one pass.

    Attributes:
        statistics: Gaussians of all images and, where asked for, their pooled features.
        score: Inception score, where the extractor has logits.
        device: where the extractor works.
    """

    statistics: Statistics
    score: Score | None
    device: torch.device


def extract(
    images: Images,
    extractor: FeatureExtractor,
    *,
    keep_features: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
) -> ExtractedFeatures:
    """Run all images through an extractor, in the memory of one batch and one covariance per kind.

    Args:
        images: at least two.
        extractor: e.g. ``load_inception(...)``.
        keep_features: keep the pooled features too: ``4 N D`` bytes.
        batch_size: images at a time.
        progress: counts images.

    Raises:
        SpecError: fewer than two images, NaN features.
        SourceError: an image cannot be read.
    """
    pool, spatial, score = GaussianAccumulator(), GaussianAccumulator(), InceptionScore()
    kept: Tensor | None = None  # float32 [N, D], on the CPU
    scored, device, done = False, torch.device("cpu"), 0
    for batch in images.batches(batch_size):
        extracted = extractor.features(batch)
        vectors = extracted["pool"]
        device = vectors.device
        pool.update(vectors)
        if (maps := extracted.get("spatial")) is not None:
            spatial.update(maps)
        if (logits := extracted.get("logits")) is not None:
            score.update(logits)
            scored = True
        if keep_features:
            kept = torch.empty(len(images), vectors.shape[1]) if kept is None else kept
            kept[done : done + len(batch)] = vectors
        done += len(batch)
        progress(f"features of {images.name}", done, len(images))
    statistics = Statistics(
        extractor=extractor.name,
        pool=pool.result(),
        spatial=spatial.result() if spatial.count else None,
        features=kept,
    )
    return ExtractedFeatures(
        statistics=statistics, score=score.result() if scored else None, device=device
    )


def evaluate_samples(
    samples: Images,
    reference: Reference,
    extractor: FeatureExtractor,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
) -> tuple[Metric, ...]:
    """FID, sFID, IS, precision and recall of samples, by the recipe of the ADM evaluator.

    A number appears where its inputs exist: the spatial distance needs spatial features on both
    sides, the score logits, precision and recall images or features of the reference. The plain
    names belong to the ADM extractor; those of any other carry its name.

    The caller adds sampler, steps, guidance and seed to each protocol.

    Raises:
        SpecError: sizes that do not match, too few images, a reference of another extractor.
        SourceError: an image cannot be read.
    """
    _check_size(samples, reference)
    target = _reference_statistics(reference, extractor, batch_size, progress)
    neighbours = target.features
    extracted = extract(
        samples,
        extractor,
        keep_features=neighbours is not None,
        batch_size=batch_size,
        progress=progress,
    )
    report = _Report(extractor.name, _sizes_text(len(samples), reference, target))
    report.distances(extracted.statistics, target)
    if extracted.score is not None:
        report.score(extracted.score, len(samples))
    if neighbours is not None and extracted.statistics.features is not None:
        half = extractor.name == ADM_EXTRACTOR
        shares = precision_recall(
            neighbours,
            extracted.statistics.features,
            distances=Distances(half=half, device=extracted.device),
            progress=progress,
        )
        counts = f"{len(samples):,} samples and {len(neighbours):,} images of {reference.name}"
        report.shares(shares, f"{counts}, {'float16' if half else 'float32'} distances")
    return tuple(report.metrics)


def _check_size(samples: Images, reference: Reference) -> None:
    if len(samples) < 2:
        raise SpecError(f"{samples.name}: {len(samples)} samples; a covariance needs at least 2")
    if reference.images is not None and reference.images.size != samples.size:
        (h, w), (rh, rw) = samples.size, reference.images.size
        raise SpecError(
            f"{reference.name} holds {rh}x{rw} images but the samples are {h}x{w}; "
            "use the reference batch of the samples' resolution"
        )


def _reference_statistics(
    reference: Reference, extractor: FeatureExtractor, batch_size: int, progress: Progress
) -> Statistics:
    """Statistics of the reference under this extractor: stored ones first, as in ADM."""
    stored = reference.statistics
    if stored is not None and stored.extractor != extractor.name:
        if reference.images is None:
            raise SpecError(
                f"{reference.name} holds statistics of extractor {stored.extractor!r}, not of "
                f"{extractor.name!r}; use that extractor, or a reference with images"
            )
        stored = None
    if stored is not None and (stored.features is not None or reference.images is None):
        return stored
    if reference.images is None:
        raise SpecError(f"{reference.name} holds neither images nor statistics")
    extracted = extract(
        reference.images, extractor, keep_features=True, batch_size=batch_size, progress=progress
    ).statistics
    if stored is None:
        return extracted
    return Statistics(
        extractor=stored.extractor,
        pool=stored.pool,
        spatial=stored.spatial,
        features=extracted.features,
    )


def _sizes_text(samples: int, reference: Reference, target: Statistics) -> str:
    count = target.pool.count
    whole = "statistics" if count is None else f"{count:,} images"
    return f"{samples:,} samples, {whole} of {reference.name}"


def _splits(count: int) -> str:
    return "one split" if count == 1 else f"{count} splits of {SPLIT_SIZE:,}"


class _Report:
    """A list of metrics whose names and protocols say which extractor they come from."""

    def __init__(self, extractor: str, against: str) -> None:
        self._extractor = extractor
        self._sizes_text = against
        self.metrics: list[Metric] = []

    def distances(self, samples: Statistics, target: Statistics) -> None:
        pairs: tuple[tuple[str, str, Gaussian | None, Gaussian | None], ...] = (
            ("FID", "Frechet distance", samples.pool, target.pool),
            ("sFID", "spatial Frechet distance", samples.spatial, target.spatial),
        )
        for plain, name, a, b in pairs:
            if a is not None and b is not None:
                self._add(plain, name, frechet_distance(a, b), self._sizes_text, higher=False)

    def score(self, score: Score, samples: int) -> None:
        protocol = f"{samples:,} samples, {_splits(score.splits)}"
        if score.splits > 1:
            protocol += f" (std {score.std:.4g})"
        self._add("IS", "classifier score", score.mean, protocol)

    def shares(self, shares: PrecisionRecall, counts: str) -> None:
        protocol = f"{NEIGHBOURS} neighbours, {counts}"
        self._add("precision", "precision", shares.precision, protocol)
        self._add("recall", "recall", shares.recall, protocol)

    def _add(
        self, plain: str, name: str, value: float, protocol: str, *, higher: bool = True
    ) -> None:
        adm = self._extractor == ADM_EXTRACTOR
        self.metrics.append(
            Metric(
                name=plain if adm else f"{name} ({self._extractor})",
                value=value,
                higher_is_better=higher,
                protocol=f"{protocol}, extractor {self._extractor}",
            )
        )
