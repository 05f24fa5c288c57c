"""Calibration of splat scenes: held-out PSNR against bytes, before and after.

    PYTHONPATH=benchmarks python benchmarks/suites/gaussian_calibration.py

Each scene is compressed at several qualities; each file is calibrated on the training photographs
and, if asked for, from the same start on pictures of the original alone (--targets). The judge is
what training never sees: the held-out photographs and the original's pictures from their places.
Every file is written, read back and measured from what was read. Needs the photographs of
../shared/data. With its defaults six minutes of one core for each of the three files.

What was recovered is told in three ways: of the PSNR to the held-out photographs,
(after - before) / (uncompressed - before); the same of their mean squared error; and by how much
the squared error to the original's pictures fell, whose PSNR has no end.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gaussian import DATA, draw
from record import RESULTS, append

from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.jobs.calibrate import CalibrateOptions as LoopOptions
from dpq_core.jobs.calibrate import calibrate_artifact
from dpq_core.jobs.compress_file import compress_file
from dpq_core.run import Run
from dpq_gaussian.adapter import GaussianAdapter
from dpq_gaussian.cameras import Camera, held_out, read_cameras
from dpq_gaussian.cameras.photographs import photograph
from dpq_gaussian.evaluation.metrics import score
from dpq_gaussian.loading import load_scene
from dpq_gaussian.options import CalibrateOptions, CompressOptions
from dpq_gaussian.scene import Scene

SCENES = {"builtin:tiny-scene": "miku_scene", str(DATA / "miku_sh3.ply"): "miku_scene"}
"""Scene -> folder of the photographs that it was trained on, but for every 8th."""

RUN = Run(device="cpu")


@dataclass(frozen=True)
class Settings:
    """What is measured, and how."""

    scenes: tuple[str, ...] = ("builtin:tiny-scene",)
    qualities: tuple[float, ...] = (1.0, 0.5, 0.25)
    targets: tuple[str, ...] = ("photographs",)
    preset: str = "small"
    harmonics: str = "transform"
    steps: int = CalibrateSettings.steps
    batch: int = CalibrateOptions.batch
    downscale: float = 1.0


@dataclass(frozen=True)
class Judge:
    """Held-out views of one scene."""

    cameras: tuple[Camera, ...]
    originals: tuple[torch.Tensor, ...]
    photographs: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, scene: Scene, folder: Path) -> Judge:
        cameras = held_out(read_cameras(folder))[1]
        return cls(
            cameras=cameras,
            originals=tuple(draw(scene, cameras)),
            photographs=tuple(photograph(camera, (0, 0, 0)) for camera in cameras),
        )

    def scores(self, scene: Scene) -> dict[str, float]:
        """Mean PSNR, squared error and SSIM to photographs and to the original's pictures."""
        pictures = list(draw(scene, self.cameras))
        found = {}
        for name, references in (("photographs", self.photographs), ("original", self.originals)):
            each = [score(*pair) for pair in zip(pictures, references, strict=True)]
            found[f"{name}_psnr_dB"] = float(np.mean([view["PSNR"] for view in each]))
            found[f"{name}_mse"] = float(np.mean([10 ** (-view["PSNR"] / 10) for view in each]))
            found[f"{name}_ssim"] = float(np.mean([view["SSIM"] for view in each]))
        return found


def rows(source: str, settings: Settings, folder: Path) -> Iterator[dict[str, Any]]:
    """One row per file."""
    original, views = load_scene(source), DATA / SCENES[source]
    judge, adapter = Judge.of(original, views), GaussianAdapter()
    whole = judge.scores(original)
    name = Path(source).stem.removeprefix("builtin:")
    about: dict[str, Any] = {"scene": name, "gaussians": len(original)}
    yield about | {"quality": None, "targets": None, "bytes": None, **whole}
    for quality in settings.qualities:
        raw, out = folder / "raw.dpq", folder / "calibrated.dpq"
        chosen = CompressOptions(
            preset=settings.preset, quality=quality, harmonics=settings.harmonics
        )
        compress_file(adapter, source, raw, overwrite=True, options=chosen, run=RUN)
        before = judge.scores(load_scene(str(raw)))
        at = about | {"quality": quality}
        yield at | {"targets": None, "bytes": raw.stat().st_size, **before}
        for targets in settings.targets:
            options = LoopOptions(
                settings=CalibrateSettings(steps=settings.steps),
                overwrite=True,
                adapter=CalibrateOptions(
                    cameras=str(views),
                    photographs=targets == "photographs",
                    batch_size=settings.batch,
                    downscale=settings.downscale,
                ),
            )
            started = time.perf_counter()
            done = calibrate_artifact(adapter, raw, out, options, RUN)
            seconds = time.perf_counter() - started
            after = judge.scores(load_scene(str(out)))
            yield at | {
                "targets": targets,
                "bytes": out.stat().st_size,
                **after,
                "recovered_of_psnr": recovered("photographs_psnr_dB", before, after, whole),
                "recovered_of_mse": recovered("photographs_mse", before, after, whole),
                "recovered_of_original_mse": recovered("original_mse", before, after, whole),
                "recovered_of_validation_loss": done.report.recovered,
                "seconds": seconds,
            }


def recovered(
    metric: str, before: dict[str, float], after: dict[str, float], whole: dict[str, float]
) -> float:
    """Share of what compressing lost."""
    return (after[metric] - before[metric]) / (whole[metric] - before[metric])


def parsed() -> tuple[Settings, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scene", action="append", choices=SCENES)
    parser.add_argument("--quality", action="append", type=float, help="of preset small")
    parser.add_argument("--targets", action="append", choices=Settings.targets)
    parser.add_argument("--harmonics", default=Settings.harmonics, choices=("transform", "pq"))
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    given = parser.parse_args()
    settings = Settings(
        scenes=tuple(given.scene or Settings.scenes),
        qualities=tuple(given.quality or Settings.qualities),
        targets=tuple(given.targets or Settings.targets),
        harmonics=given.harmonics,
        steps=given.steps,
    )
    return settings, given


def main() -> None:
    """Calibrate every file of every scene, print as it goes, append one record."""
    settings, given = parsed()
    if not all((DATA / folder).is_dir() for folder in SCENES.values()):
        print(f"no photographs in {DATA.parent.name}/{DATA.name}: nothing is measured")
        return
    torch.set_num_threads(given.threads)
    found = []
    with tempfile.TemporaryDirectory(prefix="dpq-calibration-") as name:
        for source in settings.scenes:
            for row in rows(source, settings, Path(name)):
                found.append(row)
                share = row.get("recovered_of_psnr")
                print(
                    f"{row['scene']:12} quality {row['quality'] or 'original':>8} "
                    f"{row['targets'] or '':12} {row['bytes'] or 0:>9,} B  photographs "
                    f"{row['photographs_psnr_dB']:6.3f}  original {row['original_psnr_dB']:7.3f}"
                    + (f"  recovered {share:.1%} of PSNR" if share else "")
                    + (f", {row['recovered_of_mse']:.1%} of MSE" if share else "")
                    + (f", {row['seconds']:.0f} s" if share else ""),
                    flush=True,
                )
    append(
        "gaussian_calibration",
        seed=0,
        spec=dataclasses.asdict(settings) | {"threads": given.threads},
        results={"rows": found},
        packages=("pillow", "constriction", "torchmetrics"),
        folder=given.results,
    )


if __name__ == "__main__":
    main()
