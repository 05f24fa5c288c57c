"""The calibration task of a diffusion model, made from an artifact and its uncompressed model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpq_core.artifact import Artifact
from dpq_core.calibrate.layers import prepare_student
from dpq_core.device import resolve
from dpq_core.errors import ANY, GIVE_BASELINE, Hint, SourceError, SpecError
from dpq_core.run import Run
from dpq_core.runtime.swap import set_module
from dpq_core.runtime.weight import PQWeight
from dpq_diffusion.calibration.calls import sample_name, split_call
from dpq_diffusion.calibration.data import TrainingData, read_images, read_latents
from dpq_diffusion.calibration.inputs import NoisedData
from dpq_diffusion.calibration.processes import noise_process
from dpq_diffusion.calibration.task import CalibrationSamples, DenoiserTask
from dpq_diffusion.calibration.trajectories import FIRST_SEED, Trajectories, record
from dpq_diffusion.options import CalibrateOptions
from dpq_diffusion.pipelines.class_models import ClassModel, class_model, denoiser
from dpq_diffusion.pipelines.conditions import Condition
from dpq_diffusion.pipelines.loading import load_folder
from dpq_diffusion.sampling.samplers import RequestedSettings, Sampler, TextSampler, make_sampler
from dpq_diffusion.source.checkpoint import DiffusionCheckpoint, open_checkpoint
from dpq_diffusion.source.locate import locate
from dpq_hf.sources import is_pipeline

_GIVE_PROMPTS = Hint.of("give {}, a file with one prompt per line", prompts=ANY)

_TRAINING_IMAGES = 64
"""Default number of trajectories of a calibration."""

_COMPRESSION_IMAGES = 16
"""Default number of trajectories that a compression looks at."""

_VALIDATION_IMAGES = 16
"""Trajectories for validation; of images and latents at most a tenth is, and never less than 1."""


def calibration(source: str, baseline: str, options: CalibrateOptions, run: Run) -> DenoiserTask:
    """The calibration task of an artifact: student, teacher and the samples that both look at.

    An uncompressed source becomes a student without a teacher, for compressing with data.

    Raises:
        ArtifactError: the artifact is damaged.
        SourceError: the original is another model, or data cannot be read.
        SpecError: an option does not fit the model.
    """
    folder, original, device = locate(source), open_checkpoint(baseline), resolve(run.device)
    requested = RequestedSettings(steps=options.sampling_steps, guidance=options.guidance)
    sampler = make_sampler(load_folder(original.folder, device), requested)
    teacher = _frozen_teacher(sampler.pipeline, original)
    name = _component_name(original.folder, sampler.pipeline, teacher)
    student = teacher
    if Artifact.is_artifact(folder):
        Artifact.open(folder, adapter="diffusion")
        inside = folder / name if is_pipeline(folder) else folder
        student = load_folder(inside, device, torch.float32)
        _check_same_architecture(student, teacher, baseline)
        prepare_student(student)
    if not options.trajectories:
        count = _COMPRESSION_IMAGES if student is teacher else _TRAINING_IMAGES
        options = dataclasses.replace(options, trajectories=count)
    # Compressing may never ask for validation; but while it could, the whole pipeline is in memory.
    lazily = student is teacher and not isinstance(sampler, TextSampler)
    samples = _samples(sampler, options, original.fingerprint, run, lazily=lazily)
    return DenoiserTask(
        student,
        None if student is teacher else teacher,
        samples,
        options,
        prefix=f"{name}/" if name else "",
        seed=run.seed,
    )


def _frozen_teacher(pipeline: Any, original: DiffusionCheckpoint) -> nn.Module:
    """Freezes the uncompressed denoiser and shares modules that are copies, as artifacts do."""
    model: nn.Module = denoiser(pipeline).eval()
    model.requires_grad_(False)
    name = _component_name(original.folder, pipeline, model)
    for copy, first in original.shared.get(name, {}).items():
        set_module(model, copy, model.get_submodule(first))
    return model


def _component_name(folder: Path, pipeline: Any, model: nn.Module) -> str:
    """Name of the denoiser in its pipeline; empty where the source is that component alone."""
    if not is_pipeline(folder):
        return ""
    return "transformer" if getattr(pipeline, "transformer", None) is model else "unet"


def _check_same_architecture(student: Any, teacher: Any, baseline: str) -> None:
    if not any(isinstance(module, PQWeight) for module in student.modules()):
        raise SpecError(f"calibrate: the {type(student).__name__} of the artifact is uncompressed")
    pairs = [("the class", type(student).__name__, type(teacher).__name__)]
    fields = ("in_channels", "out_channels", "sample_size", "num_layers", "num_embeds_ada_norm")
    pairs += [(name, student.config.get(name), teacher.config.get(name)) for name in fields]
    for name, artifact_value, model_value in pairs:
        if artifact_value != model_value:
            raise SourceError(
                f"{baseline}: {name} is {model_value}, of the artifact {artifact_value}; it is not "
                "the model that was compressed",
                GIVE_BASELINE,
            )


def _samples(
    sampler: Sampler, options: CalibrateOptions, original: str, run: Run, *, lazily: bool
) -> CalibrationSamples:
    """The samples to train and validate on: files where the user gave some, else trajectories.

    Args:
        sampler: of the uncompressed pipeline.
        options: of the user.
        original: fingerprint of the uncompressed model.
        run: seed, device and progress.
        lazily: draw trajectories for validation when they are asked for.
    """
    text = isinstance(sampler, TextSampler)
    if options.images or options.latents:
        if text:
            raise SpecError(
                "files of images or latents are for models that draw classes; a text-to-image "
                "pipeline is calibrated on its own images",
                _GIVE_PROMPTS,
            )
        return _samples_of_files(sampler.pipeline, options, run)
    conditions = _conditions(sampler, options, text=text)
    scheduler = sampler.pipeline.scheduler
    what = f"{options.trajectories} trajectories ({sampler.settings})"
    about = f"{original} {what} {[c.name for c in conditions]}"

    def trajectories(kind: str, count: int, first: int) -> Trajectories:
        """The trajectories of some seeds, drawn once in a job."""
        key = (about, run.seed, resolve(run.device))
        return run.reuse.get(
            f"diffusion trajectories for {kind}",
            key,
            lambda: record(sampler, conditions, count, first, run.progress),
        )

    def validation() -> Trajectories:
        first = FIRST_SEED + run.seed + options.trajectories
        return trajectories("validation", _VALIDATION_IMAGES, first)

    train = trajectories("training", options.trajectories, FIRST_SEED + run.seed)
    make_validation = validation if lazily else _returning(validation())
    if options.loss == "distill":
        return CalibrationSamples(
            train=train.recorded(),
            validation=lambda: make_validation().recorded(),
            what=what,
            fingerprint=about,
        )
    clean = train.clean(scheduler, options.class_dropout)
    _check_process(clean, options.loss)
    return CalibrationSamples(
        train=clean,
        validation=lambda: make_validation().clean(scheduler, options.class_dropout),
        what=f"{options.trajectories} images of its own ({sampler.settings})",
        fingerprint=about,
    )


def _returning(result: Trajectories) -> Callable[[], Trajectories]:
    return lambda: result


def _conditions(
    sampler: Sampler, options: CalibrateOptions, *, text: bool
) -> tuple[Condition, ...]:
    if not text:
        if options.prompts:
            message = "the model draws classes, not prompts; leave it out"
            raise SpecError(message, option="prompts")
        return sampler.conditions((), ())
    if not options.prompts:
        raise SpecError(
            "a text-to-image pipeline is calibrated on images of its own", _GIVE_PROMPTS
        )
    path = Path(options.prompts).expanduser()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot be read ({error})", option="prompts", value=path) from None
    if not any(lines):
        raise SourceError("no prompt in it", option="prompts", value=path)
    return sampler.conditions((), [line for line in lines if line])


def _samples_of_files(pipeline: Any, options: CalibrateOptions, run: Run) -> CalibrationSamples:
    """Samples from the user's images or latents; a tenth of them is kept for validation."""
    model = class_model(pipeline)
    if options.images:
        data = read_images(Path(options.images).expanduser(), pipeline, run.seed, run.progress)
    else:
        data = read_latents(Path(options.latents).expanduser(), model)
    count = len(data.latents)
    if count < 2:
        raise SpecError(f"{data.what}: at least 2 are needed, one of them for validation")
    order = np.random.default_rng(run.seed).permutation(count).tolist()
    held = max(1, min(options.validation_samples, count // 10))
    validation = _noised_data(pipeline, model, data, order[:held], options)
    train = _noised_data(pipeline, model, data, order[held:], options)
    if options.loss != "distill":
        _check_process(train, options.loss)
    return CalibrationSamples(
        train=train, validation=lambda: validation, what=data.what, fingerprint=data.fingerprint
    )


def _noised_data(
    pipeline: Any,
    model: ClassModel,
    data: TrainingData,
    rows: Sequence[int],
    options: CalibrateOptions,
) -> NoisedData:
    """Some rows of the data, to be noised, with the conditions of their classes."""
    row_numbers = torch.as_tensor(rows)
    latents = data.latents[row_numbers]
    conditions: dict[str, Tensor] = {}
    null: dict[str, Tensor] = {}
    if data.labels is not None:
        conditions = _condition_inputs(model, data.labels[row_numbers])
        null = {} if model.null is None else _condition_inputs(model, torch.tensor([model.null]))
    sample = sample_name(model.model)
    times = torch.zeros(len(latents), dtype=torch.int64)
    form, slots = split_call({sample: latents, "timestep": times, **conditions}, sample)
    condition_slots = {name: form.structure[name].index for name in conditions}
    return NoisedData(
        form=form,
        process=noise_process(pipeline.scheduler),
        data=latents,
        conditions={slot: slots[slot] for slot in condition_slots.values()},
        null={condition_slots[name]: value for name, value in null.items()},
        dropout=options.class_dropout,
    )


@torch.no_grad()
def _condition_inputs(model: ClassModel, labels: Tensor) -> dict[str, Tensor]:
    """The denoiser's arguments ``[n, ...]`` for class labels int64 ``[n]``, on the CPU."""
    device = next(model.model.parameters()).device
    return {name: value.cpu() for name, value in model.condition(labels.to(device)).items()}


def _check_process(clean: NoisedData, loss: str) -> None:
    if clean.process.name != loss:
        raise SpecError(
            f"does not fit the model's scheduler; {clean.process.name} does, and so does distill",
            option="loss",
            value=loss,
        )
