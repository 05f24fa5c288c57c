"""``dpq eval`` for diffusion models: quality of samples, and fidelity to the uncompressed model.

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
from dpq_core.errors import SpecError
from dpq_core.plugin.adapter import Evaluation, Metric
from dpq_core.plugin.builtin import BUILTIN_SCHEME
from dpq_core.run import Run
from dpq_diffusion.evaluation.fidelity import compare
from dpq_diffusion.evaluation.judges import Judge, agreement, find_judge
from dpq_diffusion.evaluation.quality import evaluate_samples
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
    fill,
    provenance,
)
from dpq_diffusion.sampling.samplers import Sampler, Wish, make_sampler


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """The model under test with its samples."""

    sampler: Sampler
    made: Provenance
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
    judge = find_judge(origin, options, resolve(run.device), run.progress)
    twin, note = _original(source, origin, options.fidelity)
    if judge is None and not twin:
        raise SpecError(
            "nothing to measure: give --reference with --inception for FID, sFID, IS, precision "
            "and recall, or --fidelity SOURCE to compare with the uncompressed model"
        )
    wish = Wish(
        steps=options.steps,
        guidance=options.guidance,
        scheduler=options.scheduler,
        guided_channels=options.guided_channels,
    )
    sampler = make_sampler(load_pipeline(source, run), wish)
    made = provenance(source, sampler, sampler.conditions(options.label, options.prompt), run.seed)
    metrics: list[Metric] = []
    details: dict[str, Any] = {"sampler": str(made.settings), "fidelity": twin or note}
    details["dtype"] = str(activation_dtype(denoiser(sampler.pipeline))).removeprefix("torch.")
    with _folder(options.folder) as path:
        subject = _Subject(
            sampler=sampler, made=made, folder=SampleFolder(path), options=options, run=run
        )
        if judge is not None or options.folder:
            fill(subject.folder, sampler, made, options.samples, options.batch_size, run)
        if judge is not None:
            metrics += _quality(subject, judge)
        if twin:
            metrics += _fidelity(subject, twin, wish, details)
    how = f"{_drawn(made.conditions)}, {made.settings}, seed {made.seed}"
    return Evaluation(
        metrics=tuple(replace(m, protocol=f"{m.protocol}, {how}") for m in metrics),
        details=details,
    )


def _drawn(conditions: Sequence[Condition]) -> str:
    """What the samples show, for protocols: which classes are drawn decides every number."""
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


def _original(source: str, origin: str, asked: str) -> tuple[str, str]:
    """The model to compare with, or why there is none."""
    if asked:
        return ("", "left out") if asked == NONE else (asked, "")
    if origin == source:
        return "", "left out: the model is not compressed"
    if origin.startswith(BUILTIN_SCHEME) or Path(origin).exists():
        return origin, ""
    return "", f"left out: {origin} is not on this machine; give --fidelity SOURCE"


@contextmanager
def _folder(asked: str) -> Iterator[Path]:
    """Where the samples go: a folder that stays, or one for this evaluation."""
    if asked:
        yield Path(asked)
        return
    with tempfile.TemporaryDirectory(prefix="dpq-samples-") as name:
        yield Path(name)


def _quality(subject: _Subject, judge: Judge) -> list[Metric]:
    """Metrics of the samples alone."""
    images, progress = subject.folder.images(subject.options.samples), subject.run.progress
    found = list(evaluate_samples(images, judge.reference, judge.extractor, progress=progress))
    items = subject.made.items(len(images))
    if judge.knows_classes and items[0].condition.label is not None:
        found.append(agreement(images, [item.condition.label for item in items], judge))
    return found


def _fidelity(
    subject: _Subject, twin: str, wish: Wish, details: dict[str, Any]
) -> tuple[Metric, ...]:
    """Metrics of pairs: drawn step by step with both models, or read from a folder of samples."""
    options, run = subject.options, subject.run
    if (Path(twin) / SETTINGS).is_file():
        theirs = SampleFolder(Path(twin))
        theirs.check_twin(subject.made)
        count = min(options.samples, options.fidelity_samples)
        fill(subject.folder, subject.sampler, subject.made, count, options.batch_size, run)
        pairs = subject.folder.images(count), theirs.images(count)
        return compare_images(*pairs, progress=run.progress).metrics()
    original = make_sampler(load_pipeline(twin, run), wish)
    if original.settings != subject.sampler.settings:
        raise SpecError(f"--fidelity {twin}: draws by {original.settings}; not the same model")
    items = subject.made.items(min(options.samples, options.fidelity_samples))
    found = compare(subject.sampler, original, items, options.batch_size, run.progress)
    if found.latents is not None:
        details["latent_mse_per_step"] = found.latents.mean(0).tolist()
    return found.metrics()
