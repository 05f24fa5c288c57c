"""``dpq sample`` for diffusion models: images, a grid to look at, an ADM batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpq_core.errors import SpecError
from dpq_core.plugin.adapter import Sampling
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
    fill,
    provenance,
)
from dpq_diffusion.sampling.samplers import Wish, make_sampler

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
        raise SpecError("images need a folder: give --output FOLDER")
    folder = SampleFolder(out)
    mine, count = _draw(source, options, run, folder)
    rows = _rows(mine, count, options.columns)
    caption = [source, f"{mine.settings}, seed {mine.seed}"]
    draw_grid(out / GRID, caption, [_row(folder, items) for items in rows])
    files = [out / GRID]
    if options.baseline:
        twin = _twin(options.baseline, options, mine, count, run, out)
        files.insert(0, _before_after(folder, twin, mine, count, rows))
    if options.npz:
        write_npz(out / BATCH, folder.images(count), progress=run.progress)
        files.append(out / BATCH)
    return Sampling(files=tuple(files))


def _draw(
    source: str, options: SampleOptions, run: Run, folder: SampleFolder
) -> tuple[Provenance, int]:
    """Fill a folder with one model's images; the model is let go afterwards."""
    wish = Wish(
        steps=options.steps,
        guidance=options.guidance,
        scheduler=options.scheduler,
        guided_channels=options.guided_channels,
    )
    sampler = make_sampler(load_pipeline(source, run), wish)
    found = sampler.conditions(options.label, options.prompt, few=options.count == 0)
    count = options.count or len(found) * options.columns
    made = provenance(source, sampler, found, run.seed)
    fill(folder, sampler, made, count, options.batch_size, run)
    return made, count


def _twin(
    baseline: str, options: SampleOptions, mine: Provenance, count: int, run: Run, out: Path
) -> SampleFolder:
    """Images of the baseline at the same seeds: drawn, or those of a folder of samples."""
    if (Path(baseline) / SETTINGS).is_file():
        twin = SampleFolder(Path(baseline))
    else:
        twin = SampleFolder(out / BASELINE)
        _draw(baseline, options, run, twin)
    twin.check_twin(mine)
    twin.images(count)
    return twin


def _before_after(
    folder: SampleFolder,
    twin: SampleFolder,
    mine: Provenance,
    count: int,
    rows: Sequence[Sequence[Item]],
) -> Path:
    """A grid with each row of the baseline above that of the model."""
    caption = [
        f"before: {twin.source}    after: {mine.source}",
        f"{mine.settings}, same seeds from {mine.seed}",
    ]
    compared = min(count, _COMPARED)
    after, before = folder.images(compared), twin.images(compared)
    if min(after.size) >= _LEAST_SIDE:
        found = compare_images(after, before)
        caption.append(
            f"{compared} image pairs: PSNR {found.psnr:.2f} dB, SSIM {found.ssim.mean().item():.4f}"
        )
    pairs: list[Row] = []
    for items in rows:
        for what, images in (("before", twin), ("after", folder)):
            row = _row(images, items)
            pairs.append(
                Row(
                    label=f"{row.label}\n{what}" if row.label else what,
                    images=row.images,
                    notes=row.notes if what == "after" else (),
                    opens=what == "before",
                )
            )
    path = folder.path / BEFORE_AFTER
    draw_grid(path, caption, pairs)
    return path


def _rows(mine: Provenance, count: int, columns: int) -> list[list[Item]]:
    """What the grid shows: one row per condition, or consecutive images where there is but one."""
    items = mine.items(count)
    conditions: Sequence[Condition] = mine.conditions
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
