"""Evaluation of splat scenes: their pictures against photographs and the original's.

Both are needed: fidelity says what compression changed, photographs say whether it matters.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpq_core.artifact import ArtifactFile
from dpq_core.errors import ANY, Hint, SourceError, SpecError
from dpq_core.plugin.builtin import BUILTIN_SCHEME
from dpq_core.plugin.image_metrics import mean_psnr
from dpq_core.plugin.results import Evaluation, Metric
from dpq_core.run import Run
from dpq_gaussian.cameras import Camera
from dpq_gaussian.cameras.photographs import photograph
from dpq_gaussian.colours import colour
from dpq_gaussian.evaluation.attributes import UNITS, attribute_errors
from dpq_gaussian.evaluation.files import EvaluatedFile, encode_seconds, read_file
from dpq_gaussian.evaluation.lpips import LPIPS, load_lpips
from dpq_gaussian.evaluation.matching import overlap
from dpq_gaussian.evaluation.metrics import score
from dpq_gaussian.evaluation.views import Views, find_views
from dpq_gaussian.options import NONE, EvaluateOptions
from dpq_gaussian.rendering import RenderOptions, Splats, drawing_device, render
from dpq_gaussian.scene import Scene

TO_PHOTOGRAPHS = "to the photographs"
TO_ORIGINAL = "to the original"

_UNITS = {"PSNR": "dB, ", "SSIM": "window of 11, sigma 1.5, ", "LPIPS": "VGG-16 v0.1, "}
_HIGHER = {"PSNR": True, "SSIM": True, "LPIPS": False}
_VISIBLE = 1 / 255  # alpha
_LEAST_OVERLAP = 0.1


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """The views, references and options with which all files are measured.

    Attributes:
        options: the user's options.
        run: progress, seed and device of the run.
        device: that draws.
        original: the uncompressed scene, if there is one.
        views: that are drawn.
        drawing: background and filter.
        lpips: if there are weights.
        references: what pictures are compared with (``TO_PHOTOGRAPHS``, ``TO_ORIGINAL``) -> the
            pictures ``[H, W, 3]`` of all views.
    """

    options: EvaluateOptions
    run: Run
    device: torch.device
    original: EvaluatedFile | None
    views: Views
    drawing: RenderOptions
    lpips: LPIPS | None
    references: dict[str, list[Tensor]] = field(default_factory=dict)

    def draw(self, scene: Scene, what: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Draws every view: colour ``[H, W, 3]`` and alpha ``[H, W]``, on the CPU."""
        splats = Splats.of(scene, self.device)
        for done, camera in enumerate(self.views.cameras):
            self.run.progress(f"drawing {what}", done, len(self.views.cameras))
            with torch.no_grad():
                drawn = render(splats, camera, self.drawing)
            yield drawn.colour.cpu(), drawn.alpha.cpu()
        self.run.progress(f"drawing {what}", len(self.views.cameras), len(self.views.cameras))

    def protocol(self) -> str:
        """The conditions that all metrics of pictures share, as text."""
        name = self.options.background
        smooth = ", anti-aliased" if self.drawing.antialiased else ""
        return (
            f"mean over {self.views.name}, {self.views.sizes}, {name} background{smooth}, "
            f"unrounded colours in [0, 1], {_rasteriser(self.device)}"
        )


def evaluate(source: str, options: EvaluateOptions, run: Run) -> Evaluation:
    """Measures a scene, and further files of it: pictures, attributes, bytes and seconds.

    Raises:
        SpecError: there is nothing to measure, or an option does not fit the scene.
        SourceError: a file cannot be read, is of another scene, or the cameras see nothing.
    """
    device = drawing_device(run.device)
    lpips = load_lpips(options.lpips, device) if options.lpips else None
    origin = origin_of(source)
    twin, notes = _original(source, origin, options.baseline)
    original = read_file(twin, run.progress) if twin else None
    subject = read_file(source, run.progress, axes=options.axes, like=original)
    reference = original or subject
    views = find_views(twin or origin, options, reference.scene, reference.origin)
    if original is None and not views.photographed:
        raise SpecError(
            "nothing to compare with",
            Hint.of(
                "give {} (the uncompressed scene), or {} with photographs",
                baseline=ANY,
                cameras=ANY,
            ),
        )
    setup = _Setup(
        options=options,
        run=run,
        device=device,
        original=original,
        views=views,
        drawing=_drawing(options, reference),
        lpips=lpips,
    )
    setup, blind = _with_references(setup, reference)
    notes += _left_out(options)
    others = {
        name: _measure(setup, read_file(name, run.progress, like=reference))
        for name in options.against
    }
    evaluation = _measure(setup, subject)
    return Evaluation(
        metrics=evaluation.metrics,
        details=evaluation.details,
        notes=(*notes, *views.notes, *blind, *evaluation.notes),
        others=others,
    )


def origin_of(source: str) -> str:
    """The uncompressed scene that a source is, or was made from, as the user named it."""
    if not source.startswith(BUILTIN_SCHEME) and ArtifactFile.is_artifact_file(source):
        return ArtifactFile.open(source).manifest.source
    return source


def _original(source: str, origin: str, baseline: str) -> tuple[str, list[str]]:
    """The original to compare with, and a note where there is none."""
    if baseline:
        return ("", ["fidelity to the original: left out"]) if baseline == NONE else (baseline, [])
    if origin == source:
        return "", ["fidelity to the original left out: no baseline is given"]
    if origin.startswith(BUILTIN_SCHEME) or Path(origin).exists():
        return origin, []
    return "", [f"fidelity left out: no baseline is given, and {origin} is not on this machine"]


def _drawing(options: EvaluateOptions, reference: EvaluatedFile) -> RenderOptions:
    smooth = reference.antialiased if options.antialiased is None else options.antialiased
    return RenderOptions(background=colour(options.background), antialiased=smooth, weights=False)


def _left_out(options: EvaluateOptions) -> Iterator[str]:
    if not options.lpips:
        yield "LPIPS left out: no weights of VGG-16 are given (option lpips)"
    if not options.encode:
        yield "encode seconds left out: no preset is given (option encode)"


def _with_references(setup: _Setup, reference: EvaluatedFile) -> tuple[_Setup, list[str]]:
    """Adds the reference pictures to a setup, and leaves out views in which nothing is seen."""
    cameras: list[Camera] = []
    drawn: list[Tensor] = []
    for camera, (picture, alpha) in zip(
        setup.views.cameras, setup.draw(reference.scene, reference.source), strict=True
    ):
        if (alpha > _VISIBLE).any():
            cameras.append(camera)
            drawn.append(picture)
    count, blind = len(setup.views.cameras), len(setup.views.cameras) - len(cameras)
    if not cameras:
        raise SourceError(
            f"none of the {count} cameras sees anything of {reference.source}; do they belong to "
            "it, and in the same coordinates?"
        )
    references: dict[str, list[Tensor]] = {}
    if setup.views.photographed:
        sky = setup.drawing.background
        references[TO_PHOTOGRAPHS] = [photograph(camera, sky) for camera in cameras]
    if setup.original is not None:
        references[TO_ORIGINAL] = drawn
    notes = [f"{blind} of {count} cameras see nothing; left out"] if blind else []
    name = f"{setup.views.name}, {blind} of them blind and left out" if blind else setup.views.name
    views = Views(cameras=tuple(cameras), photographed=setup.views.photographed, name=name)
    return replace(setup, views=views, references=references), notes


def _measure(setup: _Setup, subject: EvaluatedFile) -> Evaluation:
    """Measures all metrics of one file."""
    notes = list(subject.notes)
    if setup.original is not None:
        common = overlap(subject.scene, setup.original.scene)
        if common < _LEAST_OVERLAP:
            raise SourceError(
                f"{subject.source} is not a file of {setup.original.source}: only {common:.0%} of "
                "its Gaussians lie where that scene has any"
            )
    per_view: dict[str, list[float]] = {}
    for at, (picture, _) in enumerate(setup.draw(subject.scene, subject.source)):
        for what, references in setup.references.items():
            for name, value in score(picture, references[at], setup.lpips).items():
                per_view.setdefault(f"{name} {what}", []).append(value)
    metrics = [_picture_metric(setup, name, values) for name, values in per_view.items()]
    if setup.original is not None:
        errors, problem = _errors(subject, setup.original)
        metrics += errors
        notes += [f"{subject.source}: attributes not compared: {problem}"] if problem else []
    metrics += _costs(setup, subject)
    details: dict[str, Any] = {
        "bytes": subject.nbytes,
        "gaussians": len(subject.scene),
        "sh_degree": subject.scene.sh_degree,
        "views": [camera.name for camera in setup.views.cameras],
        "per_view": per_view,
    }
    return Evaluation(metrics=tuple(metrics), details=details, notes=tuple(notes))


def _picture_metric(setup: _Setup, name: str, values: Sequence[float]) -> Metric:
    kind = name.split()[0]
    mean, identical = sum(values) / len(values), 0
    if kind == "PSNR":
        mean, identical = mean_psnr(torch.tensor(values, dtype=torch.float64))
    same = f", {identical} of {len(values)} views identical and left out" if identical else ""
    return Metric(
        name=name,
        value=mean,
        higher_is_better=_HIGHER[kind],
        protocol=f"{_UNITS[kind]}{setup.protocol()}{same}",
    )


def _errors(subject: EvaluatedFile, original: EvaluatedFile) -> tuple[list[Metric], str]:
    """Errors of attributes as metrics, or why they cannot be measured."""
    errors = attribute_errors(subject.scene, original.scene)
    metrics = [
        Metric(
            name=f"error of {attribute}",
            value=value,
            higher_is_better=False,
            protocol=f"root mean square {UNITS[attribute]}, over {errors.pairs}",
        )
        for attribute, value in errors.rms.items()
    ]
    return metrics, errors.problem


def _costs(setup: _Setup, subject: EvaluatedFile) -> Iterator[Metric]:
    """Bits per Gaussian, and decoding and encoding seconds, as metrics."""
    whole = setup.original or subject
    of = "the original" if setup.original else "the file"

    def cost(name: str, value: float, protocol: str) -> Metric:
        return Metric(name=name, value=value, higher_is_better=False, protocol=protocol)

    yield cost(
        "bits per Gaussian",
        8 * subject.nbytes / len(whole.scene),
        f"8 x bytes on disk / {len(whole.scene):,} Gaussians of {of}",
    )
    how = f"wall time of one process, {torch.get_num_threads()} threads"
    yield cost(
        "decode seconds",
        subject.seconds,
        f"{how}, from the file to float32 arrays, best of 2",
    )
    if setup.options.encode:
        encoded = encode_seconds(subject, whole, setup.options.encode, setup.run)
        if encoded is not None:
            yield cost("encode seconds", encoded.seconds, f"{how}, {encoded.protocol}")


def _rasteriser(device: torch.device) -> str:
    if device.type == "cuda":
        return f"gsplat {importlib.metadata.version('gsplat')}"
    return f"CPU rasteriser of dpq {importlib.metadata.version('dpq')}"
