"""Bytes against fidelity of splat codecs: dpq's presets, SPZ, SOG, compressed.ply, plain VQ.

    python benchmarks/suites/gaussian.py --splat-transform node_modules/.bin/splat-transform
    python benchmarks/gaussian_tables.py

Every file is written to the disk, read back and checked before it is measured: all its Gaussians
are there and it looks like the scene. Fidelity is the mean PSNR of pictures to those of the
original, on the rig that `dpq eval` uses and, for a scene with photographs, on its held-out views,
where the photographs are a second judge. Needs the scenes of ../shared/data; those that are not
there are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gaussian_peers import TOOL, peers, transform
from gaussian_sog import upstream_palette, write_sog
from record import RESULTS, append

from dpq_core.jobs.compress_file import compress_file
from dpq_core.run import Run
from dpq_gaussian.adapter import GaussianAdapter
from dpq_gaussian.cameras import Camera, held_out, read_cameras
from dpq_gaussian.cameras.photographs import photograph
from dpq_gaussian.evaluation.metrics import score
from dpq_gaussian.formats import check_values, read_scene, write_scene
from dpq_gaussian.loading import load_scene
from dpq_gaussian.options import CompressOptions
from dpq_gaussian.rendering import RenderOptions, Splats, render
from dpq_gaussian.rendering.viewpoints import rig
from dpq_gaussian.scene import Scene

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "splats"
SCENES = {
    "miku_sh3": "miku_scene",
    "fourth_st_131k_sh3": "",
    "amaebi_78k_sh3": "",
    "tabletop_214k_sh0": "",
}
"""Scene -> folder of its photographs."""

RUN = Run(device="cpu")
SMALL = 9000
"""Gaussians of the scene on which the emulation of SOG is compared with splat-transform."""

LEAST = 20.0
"""dB. A file that is farther from its scene is broken."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how."""

    scenes: tuple[str, ...] = tuple(SCENES)
    rig_views: int = 8
    rig_size: int = 320
    palettes: tuple[int, ...] = (512, 4096)
    qualities: tuple[float, ...] = (0.35, 0.7, 1.5, 4.0, 8.0, 16.0)
    splat_transform: bool = False


@dataclass(frozen=True)
class Judge:
    """The pictures of one scene."""

    rig: tuple[Camera, ...]
    held_out: tuple[Camera, ...]
    originals: tuple[torch.Tensor, ...]
    photographs: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, scene: Scene, photographs: str, settings: Settings) -> Judge:
        around = rig(scene, size=settings.rig_size, views=settings.rig_views)
        views = held_out(read_cameras(DATA / photographs))[1] if photographs else ()
        return cls(
            rig=around,
            held_out=views,
            originals=tuple(draw(scene, (*around, *views))),
            photographs=tuple(photograph(camera, (0, 0, 0)) for camera in views),
        )

    def scores(self, scene: Scene) -> dict[str, float]:
        """Mean PSNR and SSIM over each set of views."""
        pictures = list(draw(scene, (*self.rig, *self.held_out)))
        around = len(self.rig)
        sets = {"rig": zip(pictures[:around], self.originals[:around], strict=True)}
        if self.held_out:
            sets["held_out"] = zip(pictures[around:], self.originals[around:], strict=True)
            sets["photographs"] = zip(pictures[around:], self.photographs, strict=True)
        found = {}
        for name, pairs in sets.items():
            each = [score(*pair) for pair in pairs]
            found[f"{name}_psnr_dB"] = float(np.mean([view["PSNR"] for view in each]))
            found[f"{name}_ssim"] = float(np.mean([view["SSIM"] for view in each]))
        return found


@torch.no_grad()
def draw(scene: Scene, cameras: Sequence[Camera]) -> Iterator[torch.Tensor]:
    splats, options = Splats.of(scene), RenderOptions(weights=False)
    for camera in cameras:
        yield render(splats, camera, options).colour


def measure(
    judge: Judge,
    original: Scene,
    out: Path,
    write: Callable[[], None],
    read: Callable[[Path], Scene],
) -> dict[str, Any]:
    """Write, read back, check, then measure."""
    started = time.perf_counter()
    write()
    written = time.perf_counter()
    scene = read(out)
    done = time.perf_counter()
    check_values(scene, str(out))
    drawn = int((original.opacity_logits >= np.log(1 / 254)).sum())
    assert len(scene) in (len(original), drawn), f"{out.name}: {len(scene)} of {len(original)}"
    found = judge.scores(scene)
    assert found["rig_psnr_dB"] > LEAST, f"{out.name}: {found['rig_psnr_dB']:.1f} dB"
    return {
        "bytes": out.stat().st_size,
        "gaussians": len(original),
        "encode_seconds": written - started,
        "decode_seconds": done - written,
        **found,
    }


def dpq_files(qualities: Sequence[float], cameras: str) -> Iterator[tuple[str, str, Any]]:
    """Name, family and options of what dpq is asked for."""
    for preset in ("small", "balanced", "high"):
        yield f"**dpq {preset}**", "dpq", CompressOptions(preset=preset)
    for quality in qualities:
        options = CompressOptions(preset="balanced", quality=quality)
        yield f"dpq balanced, quality {quality:g}", "dpq", options
    if cameras:
        for preset in ("small", "balanced"):
            name = f"dpq {preset}, training poses given"
            yield name, "dpq with poses", CompressOptions(preset=preset, cameras=cameras)


def scene_rows(name: str, settings: Settings, tool: str | None, folder: Path) -> Iterator[Any]:
    """One row per file of a scene."""
    ply = DATA / f"{name}.ply"
    scene = read_scene(ply).scene
    photographs = SCENES[name]
    judge = Judge.of(scene, photographs, settings)
    about = {"scene": name, "method": "ply, float32", "family": "lossless"}
    raw = {"bytes": ply.stat().st_size, "gaussians": len(scene), **judge.scores(scene)}
    yield about | raw | {"encode_seconds": 0.0, "decode_seconds": 0.0}
    cameras = training_cameras(DATA / photographs, folder) if photographs else ""
    adapter, out = GaussianAdapter(), folder / "scene.dpq"
    for method, family, options in dpq_files(settings.qualities, cameras):

        def write(options: Any = options) -> None:
            compress_file(adapter, str(ply), out, overwrite=True, options=options, run=RUN)

        about |= {"method": method, "family": family}
        yield about | measure(judge, scene, out, write, lambda path: load_scene(str(path)))
    for peer in peers(scene, settings.palettes, tool):
        path = folder / f"scene{peer.suffix}"
        about |= {"method": peer.name, "family": peer.family}
        yield (
            about
            | measure(judge, scene, path, lambda p=peer, q=path: p.write(scene, ply, q), peer.read)
        )


def training_cameras(source: Path, folder: Path) -> str:
    """A cameras.json without the held-out views: nothing of the test is known to the codec."""
    content = json.loads((source / "cameras.json").read_text())
    names = {camera.name for camera in held_out(read_cameras(source))[0]}
    content["frames"] = [frame for frame in content["frames"] if frame["name"] in names]
    out = folder / "cameras.json"
    out.write_text(json.dumps(content))
    return str(out)


def validate(tool: str, folder: Path) -> dict[str, Any]:
    """The emulation of SOG beside splat-transform's own, on a part of the first scene."""
    whole = read_scene(DATA / "miku_sh3.ply").scene
    middle = np.median(whole.positions, axis=0)
    near = np.argsort(np.linalg.norm(whole.positions - middle, axis=1), kind="stable")[:SMALL]
    scene = whole.take(np.sort(near))
    write_scene(scene, folder / "small.ply", "ply")
    transform(tool, folder / "small.ply", folder / "theirs.sog")
    write_sog(scene, folder / "ours.sog", upstream_palette(SMALL))
    cameras = rig(scene, size=256, views=4)
    originals = list(draw(scene, cameras))
    found: dict[str, Any] = {"gaussians": SMALL, "palette": upstream_palette(SMALL)}
    for name in ("theirs", "ours"):
        path = folder / f"{name}.sog"
        pictures = draw(read_scene(path).scene, cameras)
        pairs = zip(pictures, originals, strict=True)
        found[f"{name}_psnr_dB"] = float(np.mean([score(*pair)["PSNR"] for pair in pairs]))
        found[f"{name}_bytes"] = path.stat().st_size
    return found


def parsed() -> tuple[Settings, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scene", action="append", choices=SCENES)
    parser.add_argument("--splat-transform", default=shutil.which(TOOL), help="its command")
    parser.add_argument("--palette", type=int, action="append", help="of SOG; 65536 takes minutes")
    parser.add_argument("--rig-views", type=int, default=Settings.rig_views)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    given = parser.parse_args()
    wanted = given.scene or tuple(SCENES)
    settings = Settings(
        scenes=tuple(name for name in wanted if (DATA / f"{name}.ply").exists()),
        rig_views=given.rig_views,
        palettes=tuple(given.palette or Settings.palettes),
        splat_transform=given.splat_transform is not None,
    )
    return settings, given


def main() -> None:
    """Measure every file of every scene, print as it goes, append one record."""
    settings, given = parsed()
    if not settings.scenes:
        print(f"no scenes in {DATA.parent.name}/{DATA.name}: nothing is measured")
        return
    torch.set_num_threads(given.threads)
    rows = []
    with tempfile.TemporaryDirectory(prefix="dpq-gaussian-") as name:
        folder = Path(name)
        for scene in settings.scenes:
            for row in scene_rows(scene, settings, given.splat_transform, folder):
                rows.append(row)
                print(
                    f"{scene:20} {row['method']:36} {row['bytes']:>10,} B "
                    f"{row['bytes'] / row['gaussians']:6.2f} B/G  rig {row['rig_psnr_dB']:6.2f} "
                    f"held out {row.get('held_out_psnr_dB', 0):6.2f} "
                    f"photographs {row.get('photographs_psnr_dB', 0):6.2f}  "
                    f"{row['encode_seconds']:6.1f} s",
                    flush=True,
                )
        checked = {}
        if given.splat_transform and "miku_sh3" in settings.scenes:
            checked = validate(given.splat_transform, folder)
            print(checked)
    append(
        "gaussian",
        seed=0,
        spec=dataclasses.asdict(settings) | {"threads": given.threads},
        results={"rows": rows, "sog_emulation": checked},
        packages=("faiss-cpu", "pillow", "constriction", "torchmetrics"),
        folder=given.results,
    )


if __name__ == "__main__":
    main()
