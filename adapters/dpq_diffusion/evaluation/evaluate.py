"""Evaluation of diffusion models: quality of samples, and fidelity to the uncompressed model.

Frechet distances alone reward damage that makes images smoother; fidelity does not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpq_core.artifact import Artifact
from dpq_core.device import resolve
from dpq_core.errors import ANY, Hint, SpecError
from dpq_core.plugin.builtin import BUILTIN_SCHEME
from dpq_core.plugin.results import Evaluation, Metric
from dpq_core.run import Run
from dpq_diffusion.evaluation.fidelity import compare
from dpq_diffusion.evaluation.quality import evaluate_samples
from dpq_diffusion.evaluation.scorer import Scorer, class_agreement, find_scorer
from dpq_diffusion.options import NONE, EvaluateOptions
from dpq_diffusion.pipelines.class_models import denoiser
from dpq_diffusion.pipelines.conditions import Condition
from dpq_diffusion.pipelines.denoising import activation_dtype
from dpq_diffusion.pipelines.loading import load_pipeline
from dpq_diffusion.sampling.image_pairs import compare_images
from dpq_diffusion.sampling.sample_folder import (
    SETTINGS,
    Provenance,
    SampleFolder,
    draw_missing,
    provenance_of,
)
from dpq_diffusion.sampling.samplers import RequestedSettings, Sampler, make_sampler


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """The model under test, and the folder of its samples."""

    sampler: Sampler
    provenance: Provenance
    folder: SampleFolder
    options: EvaluateOptions
    run: Run


def evaluate(source: str, options: EvaluateOptions, run: Run) -> Evaluation:
    """Draw samples, score them, and compare some with those of the uncompressed model.

    Raises:
        SpecError: there is nothing to measure, or an option does not fit the model.
        SourceError: a model, a reference or the Inception weights cannot be read.
    """
    origin = origin_of(source)
    scorer = find_scorer(origin, options, resolve(run.device), run.progress)
    baseline, note = _find_baseline(source, origin, options.baseline)
    if scorer is None and not baseline:
        raise SpecError(
            "nothing to measure",
            Hint.of(
                "give {} with {} for FID, sFID, IS, precision and recall, or {} to compare with "
                "the uncompressed model",
                reference_stats=ANY,
                inception=ANY,
                baseline=ANY,
            ),
        )
    requested = RequestedSettings(
        steps=options.sampling_steps,
        guidance=options.guidance,
        scheduler=options.scheduler,
        guided_channels=options.guided_channels,
    )
    sampler = make_sampler(load_pipeline(source, run), requested)
    provenance = provenance_of(
        source, sampler, sampler.conditions(options.label, options.prompt), run.seed
    )
    metrics: list[Metric] = []
    details: dict[str, Any] = {"sampler": str(provenance.settings), "fidelity": baseline or note}
    details["dtype"] = str(activation_dtype(denoiser(sampler.pipeline))).removeprefix("torch.")
    with _sample_folder(options.folder) as path:
        subject = _Subject(
            sampler=sampler,
            provenance=provenance,
            folder=SampleFolder(path),
            options=options,
            run=run,
        )
        if scorer is not None or options.folder:
            draw_missing(
                subject.folder, sampler, provenance, options.count, options.batch_size, run
            )
        if scorer is not None:
            metrics += _quality(subject, scorer)
        if baseline:
            metrics += _fidelity(subject, baseline, requested, details)
    how = (
        f"{_conditions_text(provenance.conditions)}, {provenance.settings}, seed {provenance.seed}"
    )
    return Evaluation(
        metrics=tuple(replace(m, protocol=f"{m.protocol}, {how}") for m in metrics),
        details=details,
    )


def _conditions_text(conditions: Sequence[Condition]) -> str:
    """A text for protocols of what the samples show, on which every number depends."""
    count = len(conditions)
    if conditions[0].label is not None:
        return f"{count} classes in turn" if count > 1 else f"class {conditions[0].label}"
    if conditions[0].prompt is not None:
        return f"{count} prompts in turn" if count > 1 else "one prompt"
    return "unconditional"


def origin_of(source: str) -> str:
    """The uncompressed model that a source is, or was made from, as the user named it."""
    if not source.startswith(BUILTIN_SCHEME) and Artifact.is_artifact(source):
        return Artifact.open(source).manifest.source
    return source


def _find_baseline(source: str, origin: str, requested_baseline: str) -> tuple[str, str]:
    """The uncompressed model to compare with, or a note of why there is none."""
    if requested_baseline:
        return ("", "left out") if requested_baseline == NONE else (requested_baseline, "")
    if origin == source:
        return "", "left out: the model is not compressed"
    if origin.startswith(BUILTIN_SCHEME) or Path(origin).exists():
        return origin, ""
    return "", f"left out: no baseline is given, and {origin} is not on this machine"


@contextmanager
def _sample_folder(path: str) -> Iterator[Path]:
    """The folder of the samples: the user's, or a temporary one for this evaluation."""
    if path:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="dpq-samples-") as name:
        yield Path(name)


def _quality(subject: _Subject, scorer: Scorer) -> list[Metric]:
    """Metrics of the samples alone: distances to the reference and class agreement."""
    images, progress = subject.folder.images(subject.options.count), subject.run.progress
    metrics = list(evaluate_samples(images, scorer.reference, scorer.extractor, progress=progress))
    items = subject.provenance.items(len(images))
    if scorer.knows_classes and items[0].condition.label is not None:
        metrics.append(class_agreement(images, [item.condition.label for item in items], scorer))
    return metrics


def _fidelity(
    subject: _Subject, baseline: str, requested: RequestedSettings, details: dict[str, Any]
) -> tuple[Metric, ...]:
    """Metrics of image pairs: drawn with both models, or read from the baseline's folder."""
    options, run = subject.options, subject.run
    if (Path(baseline) / SETTINGS).is_file():
        baseline_folder = SampleFolder(Path(baseline))
        baseline_folder.check_same_settings(subject.provenance)
        count = min(options.count, options.baseline_count)
        draw_missing(
            subject.folder, subject.sampler, subject.provenance, count, options.batch_size, run
        )
        pairs = subject.folder.images(count), baseline_folder.images(count)
        return compare_images(*pairs, progress=run.progress).metrics()
    baseline_sampler = make_sampler(load_pipeline(baseline, run), requested)
    if baseline_sampler.settings != subject.sampler.settings:
        raise SpecError(
            f"draws by {baseline_sampler.settings}; not the same model",
            option="baseline",
            value=baseline,
        )
    items = subject.provenance.items(min(options.count, options.baseline_count))
    comparison = compare(subject.sampler, baseline_sampler, items, options.batch_size, run.progress)
    if comparison.latents is not None:
        details["latent_mse_per_step"] = comparison.latents.mean(0).tolist()
    return comparison.metrics()
