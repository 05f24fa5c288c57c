"""Sampling of diffusion models into a folder: images, a grid of them, and an ADM batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpq_core.errors import ANY, Hint, SpecError
from dpq_core.plugin.results import Sampling
from dpq_core.run import Run
from dpq_diffusion.options import SampleOptions
from dpq_diffusion.pipelines.conditions import Condition, Item
from dpq_diffusion.pipelines.loading import load_pipeline
from dpq_diffusion.sampling.grids import Row, draw_grid
from dpq_diffusion.sampling.image_pairs import compare_images
from dpq_diffusion.sampling.images import write_npz
from dpq_diffusion.sampling.sample_folder import (
    SETTINGS,
    Provenance,
    SampleFolder,
    draw_missing,
    provenance_of,
)
from dpq_diffusion.sampling.samplers import RequestedSettings, make_sampler

GRID = "grid.png"
BEFORE_AFTER = "before-after.png"
BATCH = "samples.npz"
BASELINE = "baseline"

_ROWS = 16
_COMPARED = 256  # images behind the PSNR in the caption of the before/after grid
_LEAST_SIDE = 6  # pixels; SSIM needs as many


def sample(source: str, options: SampleOptions, run: Run, out: Path | None) -> Sampling:
    """Draw images into ``out``: the same seed gives the same images, in any batch size.

    Raises:
        SpecError: an option does not fit the model, or ``out`` holds other samples.
        SourceError: the model cannot be read, or gives NaN.
    """
    if out is None:
        raise SpecError("images need a folder", Hint.of("give {}", output=ANY))
    folder = SampleFolder(out)
    provenance, count = _draw(source, options, run, folder)
    rows = _rows(provenance, count, options.columns)
    caption = [source, f"{provenance.settings}, seed {provenance.seed}"]
    draw_grid(out / GRID, caption, [_row(folder, items) for items in rows])
    files = [out / GRID]
    if options.baseline:
        baseline_folder = _baseline_folder(options.baseline, options, provenance, count, run, out)
        files.insert(0, _before_after(folder, baseline_folder, provenance, count, rows))
    if options.npz:
        write_npz(out / BATCH, folder.images(count), progress=run.progress)
        files.append(out / BATCH)
    return Sampling(files=tuple(files))


def _draw(
    source: str, options: SampleOptions, run: Run, folder: SampleFolder
) -> tuple[Provenance, int]:
    """Draw one model's images into a folder; the model is freed afterwards."""
    requested = RequestedSettings(
        steps=options.sampling_steps,
        guidance=options.guidance,
        scheduler=options.scheduler,
        guided_channels=options.guided_channels,
    )
    sampler = make_sampler(load_pipeline(source, run), requested)
    conditions = sampler.conditions(options.label, options.prompt, few=options.count == 0)
    count = options.count or len(conditions) * options.columns
    provenance = provenance_of(source, sampler, conditions, run.seed)
    draw_missing(folder, sampler, provenance, count, options.batch_size, run)
    return provenance, count


def _baseline_folder(
    baseline: str, options: SampleOptions, provenance: Provenance, count: int, run: Run, out: Path
) -> SampleFolder:
    """The baseline's images at the same seeds: drawn now, or those of its folder of samples."""
    if (Path(baseline) / SETTINGS).is_file():
        baseline_folder = SampleFolder(Path(baseline))
    else:
        baseline_folder = SampleFolder(out / BASELINE)
        _draw(baseline, options, run, baseline_folder)
    baseline_folder.check_same_settings(provenance)
    baseline_folder.images(count)
    return baseline_folder


def _before_after(
    folder: SampleFolder,
    baseline_folder: SampleFolder,
    provenance: Provenance,
    count: int,
    rows: Sequence[Sequence[Item]],
) -> Path:
    """Draw a grid with each row of the baseline above the model's, and return its path."""
    caption = [
        f"before: {baseline_folder.source}    after: {provenance.source}",
        f"{provenance.settings}, same seeds from {provenance.seed}",
    ]
    compared = min(count, _COMPARED)
    after, before = folder.images(compared), baseline_folder.images(compared)
    if min(after.size) >= _LEAST_SIDE:
        fidelity = compare_images(after, before)
        caption.append(
            f"{compared} image pairs: PSNR {fidelity.psnr:.2f} dB, "
            f"SSIM {fidelity.ssim.mean().item():.4f}"
        )
    pairs: list[Row] = []
    for items in rows:
        for when, images in (("before", baseline_folder), ("after", folder)):
            row = _row(images, items)
            pairs.append(
                Row(
                    label=f"{row.label}\n{when}" if row.label else when,
                    images=row.images,
                    notes=row.notes if when == "after" else (),
                    opens=when == "before",
                )
            )
    path = folder.path / BEFORE_AFTER
    draw_grid(path, caption, pairs)
    return path


def _rows(provenance: Provenance, count: int, columns: int) -> list[list[Item]]:
    """The rows of the grid: one per condition, or consecutive images where there is only one."""
    items = provenance.items(count)
    conditions: Sequence[Condition] = provenance.conditions
    if len(conditions) == 1:
        rows = [items[first : first + columns] for first in range(0, count, columns)]
    else:
        step = len(conditions)
        rows = [items[first::step][:columns] for first in range(min(step, count))]
    return rows[:_ROWS]


def _row(folder: SampleFolder, items: Sequence[Item]) -> Row:
    return Row(
        label=items[0].condition.name,
        images=[folder.image(item.index) for item in items],
        notes=[f"seed {item.seed}" for item in items],
    )
