"""The views of a calibration and their targets: photographs or pictures of the original."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dpq_core.errors import Hint, SourceError
from dpq_core.plugin.builtin import BUILTIN_SCHEME
from dpq_gaussian.calibration.loss import TargetPicture
from dpq_gaussian.cameras import Camera, held_out, read_cameras
from dpq_gaussian.cameras.photographs import photograph, sized_like_photograph
from dpq_gaussian.cameras.reading import HOLD
from dpq_gaussian.cameras.surrounding import SIZE, near_plane, surrounding_cameras
from dpq_gaussian.colours import colour
from dpq_gaussian.formats.loaded import NO_ORIGIN, Origin
from dpq_gaussian.options import CalibrateOptions
from dpq_gaussian.rendering import RenderOptions, Splats, render
from dpq_gaussian.scene import Scene

ROUNDS = 4
"""Times the cameras that encoding looks from: 96, of which every 8th validates."""

_CACHE_BYTES = 1 << 30
"""Targets beyond this are made anew whenever they are needed."""


@dataclass(frozen=True, kw_only=True)
class TrainingViews:
    """Views to train on and to validate with, none of which ``dpq eval`` measures.

    Attributes:
        cameras: all of them.
        train: indices of those that train.
        validation: indices of the others.
        photographed: targets are photographs, not pictures of the original alone.
        distill: share of the original's picture in a target that is a photograph.
        drawing: background, filter and near plane.
        original: whose pictures are targets.
    """

    cameras: tuple[Camera, ...]
    train: tuple[int, ...]
    validation: tuple[int, ...]
    photographed: bool
    distill: float
    drawing: RenderOptions
    original: Splats
    _targets: dict[int, TargetPicture] = field(default_factory=dict, repr=False)

    def target(self, index: int) -> TargetPicture:
        """The target picture of view ``index``.

        Raises:
            SourceError: its photograph cannot be read.
        """
        if index in self._targets:
            return self._targets[index]
        target = TargetPicture(self._picture(self.cameras[index]))
        if sum(t.nbytes for t in self._targets.values()) + target.nbytes <= _CACHE_BYTES:
            self._targets[index] = target
        return target

    def _picture(self, camera: Camera) -> torch.Tensor:
        """The photograph mixed with the original's picture by the share ``distill``."""
        share = self.distill if self.photographed else 1.0
        parts = []
        if share < 1:
            taken = photograph(camera, self.drawing.background)
            parts.append((1 - share) * taken.to(self.original.positions.device))
        if share > 0:
            with torch.no_grad():
                parts.append(share * render(self.original, camera, self.drawing).colour)
        return sum(parts[1:], parts[0])


def training_views(
    options: CalibrateOptions,
    scene: Scene,
    *,
    antialiased: bool,
    device: torch.device,
    origin: Origin = NO_ORIGIN,
) -> TrainingViews:
    """Chooses the views: the user's except the held-out ones, or cameras set up around the scene.

    Args:
        options: the user's options.
        scene: the original.
        antialiased: it was trained for anti-aliased rendering.
        device: that draws.
        origin: the place in the world that its positions are relative to.

    Raises:
        SourceError: cameras or photographs are missing, too few, or do not fit each other.
    """
    drawing = RenderOptions(
        background=colour(options.background), antialiased=antialiased, weights=False
    )
    original = Splats.of(scene, device)
    if options.cameras:
        given = _given(options, origin)
        parts = held_out(given)
        photographed = given[0].image is not None and options.photographs
        cameras, validation = (*parts[0], *parts[1]), range(len(parts[0]), len(given))
    else:
        given = tuple(surrounding_cameras(scene, ROUNDS))
        cameras = tuple(camera.scaled(options.pixels / SIZE) for camera in given)
        photographed, validation = False, range(0, len(cameras), HOLD)
        drawing = replace(drawing, near=near_plane(scene))
    return TrainingViews(
        cameras=cameras,
        train=tuple(i for i in range(len(cameras)) if i not in validation),
        validation=tuple(validation),
        photographed=photographed,
        distill=options.distill,
        drawing=drawing,
        original=original,
    )


def _given(options: CalibrateOptions, origin: Origin) -> tuple[Camera, ...]:
    """The user's cameras without the held-out ones, sized like their photographs."""
    source = options.cameras
    if source.startswith(BUILTIN_SCHEME):
        raise SourceError(f"{source}: its cameras are all held out, to judge; give others")
    everything = read_cameras(Path(source), origin=origin)
    chosen = held_out(everything)[0]
    if len(chosen) < 2:
        raise SourceError(
            f"{source}: {len(everything)} cameras are too few: every {HOLD}th is held out to judge "
            "the result, and of the others one validates and one or more train"
        )
    missing = [camera.name for camera in chosen if camera.image is None]
    if 0 < len(missing) < len(chosen) and options.photographs:
        raise SourceError(
            f"{source}: no photograph of view {missing[0]!r} and {len(missing) - 1} more of "
            f"{len(chosen)}",
            Hint.of("use {} to train on pictures of the original", photographs=False),
        )
    return tuple(sized_like_photograph(camera, options.downscale) for camera in chosen)
