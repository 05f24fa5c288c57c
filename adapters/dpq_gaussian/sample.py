"""Pictures of a splat scene: an orbit around it, and views of given cameras."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dpq_core.errors import ANY, Hint, SourceError, SpecError
from dpq_core.plugin.results import Sampling
from dpq_core.run import Progress, Run
from dpq_gaussian.cameras import Camera, read_cameras, select
from dpq_gaussian.colours import colour
from dpq_gaussian.formats.loaded import Origin
from dpq_gaussian.loading import load
from dpq_gaussian.options import SIZE, SampleOptions
from dpq_gaussian.rendering import RenderOptions, Splats, drawing_device, render
from dpq_gaussian.rendering.pictures import (
    Picture,
    check_mp4,
    side_by_side,
    to_bytes,
    write_gif,
    write_mp4,
    write_png,
)
from dpq_gaussian.rendering.viewpoints import orbit
from dpq_gaussian.scene import Scene, check_values
from dpq_gaussian.scene.sources import locate

ORBIT = "orbit"
VIEWS = "views"
BEFORE_AFTER = "before-after"

_GLANCE = 64  # pixels of the picture in which it is checked that a camera sees anything
_VISIBLE = 1 / 255  # alpha


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A loaded scene with the options to draw it."""

    source: str
    megabytes: float
    scene: Scene
    splats: Splats
    options: RenderOptions
    origin: Origin

    def draw(self, camera: Camera) -> Picture:
        with torch.no_grad():
            return to_bytes(render(self.splats, camera, self.options).colour)

    def filtered(self, antialiased: bool) -> _Subject:
        return replace(self, options=replace(self.options, antialiased=antialiased))


def sample(source: str, options: SampleOptions, run: Run, out: Path | None) -> Sampling:
    """Draws pictures of a scene into ``out``, beside those of a baseline if there is one.

    Raises:
        SpecError: an option does not fit, or there is no folder.
        SourceError: the scene or the cameras cannot be read, or nothing is seen.
        AdapterError: a library that an option needs is missing.
    """
    if out is None:
        raise SpecError("pictures need a folder", Hint.of("give {}", output=ANY))
    if options.mp4:
        check_mp4()
    subject = _open(source, options, run)
    twin = _open(options.baseline, options, run, like=subject) if options.baseline else None
    if twin is not None and options.antialiased is None:
        # Only some formats can say which filter a scene was trained with; a .ply cannot.
        smooth = subject.options.antialiased or twin.options.antialiased
        subject, twin = subject.filtered(smooth), twin.filtered(smooth)
    views = _views(subject, options)
    path = _orbit(twin or subject, options)  # the original says where its compressed copy is seen
    texts = []
    files: list[Path] = []
    paint = _painter(subject, twin)
    for what, cameras in ((VIEWS, views), (ORBIT, path)):
        if not cameras:
            continue
        folder = out / what if twin is None else out / f"{what}-{BEFORE_AFTER}"
        made, errors = _draw_all(cameras, paint, folder, run.progress)
        if what == ORBIT:
            files += _films(made, options)
        else:
            files += made
        if errors:
            psnr = -10 * np.log10(max(float(np.mean(errors)), 1e-12))
            texts.append(
                f"{what}: {psnr:.2f} dB PSNR to {options.baseline}, {len(cameras)} pictures"
            )
    return Sampling(texts=tuple(texts), files=tuple(files))


def _open(source: str, options: SampleOptions, run: Run, like: _Subject | None = None) -> _Subject:
    device = drawing_device(run.device)
    loaded = load(source, axes=options.axes or None)
    if like is not None:
        loaded = loaded.relative_to(like.origin)
    check_values(loaded.scene, source)
    size = locate(source).stat().st_size
    smooth = loaded.antialiased if options.antialiased is None else options.antialiased
    return _Subject(
        source=source,
        megabytes=size / 1e6,
        scene=loaded.scene,
        splats=Splats.of(loaded.scene, device),
        options=RenderOptions(
            background=colour(options.background),
            antialiased=smooth,
            sh_degree=options.sh_degree,
            weights=False,
        ),
        origin=loaded.origin,
    )


def _views(subject: _Subject, options: SampleOptions) -> tuple[Camera, ...]:
    """The given cameras, in the size asked for."""
    if not options.cameras:
        return ()
    given = read_cameras(options.cameras, origin=subject.origin)
    cameras = [_sized(camera, options) for camera in select(given, options.names)]
    blind = [camera.name for camera in cameras if not sees(subject.splats, camera)]
    if len(blind) == len(cameras):
        raise SourceError(
            f"{options.cameras}: none of its {len(cameras)} cameras sees the scene; do they belong "
            "to it, and in the same coordinates?"
        )
    return tuple(cameras)


def sees(splats: Splats, camera: Camera) -> bool:
    """Whether anything of a scene is in a camera's picture."""
    scale = _GLANCE / max(camera.width, camera.height)
    with torch.no_grad():
        alpha = render(splats, camera.scaled(min(scale, 1)), RenderOptions(sh_degree=0)).alpha
    return bool((alpha > _VISIBLE).any())


def _sized(camera: Camera, options: SampleOptions) -> Camera:
    width, height = options.width, options.height
    if not width and not height:
        return camera
    width = width or max(1, round(camera.width * height / camera.height))
    return camera.resized(width, height or max(1, round(camera.height * width / camera.width)))


def _orbit(subject: _Subject, options: SampleOptions) -> tuple[Camera, ...]:
    if not options.orbit_frames:
        return ()
    width = options.width or options.height or SIZE
    return orbit(
        subject.scene,
        frames=options.orbit_frames,
        width=width,
        height=options.height or width,
        elevation=options.elevation,
        up=options.up,
    )


Paint = Callable[[Camera], tuple[Picture, float | None]]


def _painter(subject: _Subject, twin: _Subject | None) -> Paint:
    """A function that draws one camera's picture and measures its error to the baseline's."""

    def paint(camera: Camera) -> tuple[Picture, float | None]:
        after = subject.draw(camera)
        if twin is None:
            return after, None
        before = twin.draw(camera)
        error = float(np.mean((after.astype(np.float64) - before) ** 2)) / 255**2
        captions = [
            f"{what}: {Path(one.source).name}, {one.megabytes:.2f} MB"
            for what, one in (("before", twin), ("after", subject))
        ]
        return side_by_side([before, after], captions), error

    return paint


def _draw_all(
    cameras: Sequence[Camera], paint: Paint, folder: Path, progress: Progress
) -> tuple[list[Path], list[float]]:
    """Write a PNG for every camera; the files, and the errors to the baseline if there is one."""
    files: list[Path] = []
    errors: list[float] = []
    names = _file_names(cameras)
    progress(f"drawing {folder.name}", 0, len(cameras))
    for camera, name in zip(cameras, names, strict=True):
        picture, error = paint(camera)
        files.append(folder / f"{name}.png")
        write_png(files[-1], picture)
        if error is not None:
            errors.append(error)
        progress(f"drawing {folder.name}", len(files), len(cameras))
    return files, errors


def _file_names(cameras: Sequence[Camera]) -> list[str]:
    """Names of the cameras, fit for files; numbered where that makes two alike."""
    names = [re.sub(r"[^\w.-]+", "_", camera.name).lstrip(".")[:100] for camera in cameras]
    if len({name.lower() for name in names}) == len(names) and all(names):
        return names
    return [f"{at:04d}-{name}" for at, name in enumerate(names)]


def _films(frames: list[Path], options: SampleOptions) -> list[Path]:
    """Writes the orbit as GIF, and as MP4 if asked for."""
    folder = frames[0].parent
    films = [folder.with_suffix(".gif")]
    write_gif(films[0], frames, options.fps)
    if options.mp4:
        films.append(folder.with_suffix(".mp4"))
        write_mp4(films[1], frames, options.fps)
    return films
