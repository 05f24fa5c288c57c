"""Folder of ``builtin:tiny-scene``: scene, held-out cameras and photographs, model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tiny_scene_card import Facts, card
from tiny_scene_data import View, view
from tiny_scene_model import DEAD

from dpq_gaussian.cameras import Camera, read_cameras
from dpq_gaussian.formats import write_scene
from dpq_gaussian.rendering import Splats, render
from dpq_gaussian.rendering.pictures import side_by_side, to_bytes
from dpq_gaussian.scene import Scene

if TYPE_CHECKING:
    from train_tiny_scene import Run

QUALITY = 94  # of the photographs, JPEG; half a megabyte of them
PREVIEW_QUALITY = 85
SHOWN = (1, 5, 9)  # of the held-out views, in the card's picture
PREVIEW_WIDTH = 900


def export(folder: Path, run: Run) -> None:
    """Write what ships, and measure it as written."""
    folder.mkdir(parents=True, exist_ok=True)
    scene = living(run.model.splats)
    write_scene(scene, folder / "scene.ply", "ply", overwrite=True)
    write_views(folder, [view.camera for view in run.test_views])
    (folder / "training_log.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in run.log), encoding="utf-8"
    )
    splats = Splats.of(scene)
    shipped = [view(camera, 1.0) for camera in read_cameras(folder)]
    psnr, ssim = measure(splats, run.test_views)
    facts = Facts(
        gaussians=len(scene),
        nbytes=(folder / "scene.ply").stat().st_size,
        photographs=len(run.train_views),
        names=[view.camera.name for view in run.test_views],
        psnr=psnr,
        ssim=ssim,
        shipped_psnr=measure(splats, shipped)[0],
        train_psnr=measure(splats, run.train_views)[0],
        steps=run.step,
        minutes=run.seconds / 60,
        small=run.args.small,
        budget=run.args.budget,
        log=run.log,
        licence=(run.args.data / "LICENSE").read_text(encoding="utf-8").strip(),
    )
    preview(folder / "preview.jpg", splats, [run.test_views[at] for at in SHOWN])
    (folder / "README.md").write_text(card(facts), encoding="utf-8")


def living(splats: Splats) -> Scene:
    """The Gaussians that can be seen at all."""
    keep = torch.sigmoid(splats.opacity_logits) > DEAD
    names = Splats.__dataclass_fields__
    return Scene(**{name: getattr(splats, name).detach()[keep].numpy() for name in names})


def write_views(folder: Path, cameras: list[Camera]) -> None:
    """``cameras.json`` and the photographs, which all have one lens."""
    (folder / "views").mkdir(exist_ok=True)
    first = cameras[0]
    content: dict[str, Any] = {
        key: getattr(first, key) for key in ("width", "height", "fx", "fy", "cx", "cy")
    }
    content["frames"] = []
    for camera in cameras:
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = camera.rotation, camera.translation
        content["frames"].append({"name": camera.name, "w2c": matrix.tolist()})
        with Image.open(camera.image) as photo:
            photo.convert("RGB").save(
                folder / "views" / f"{camera.name}.jpg", quality=QUALITY, optimize=True
            )
    text = json.dumps(content, indent=1) + "\n"
    (folder / "cameras.json").write_text(text, encoding="utf-8")


@torch.no_grad()
def measure(splats: Splats, views: list[View]) -> tuple[list[float], list[float]]:
    """PSNR in decibels and SSIM of every view."""
    pictures = [render(splats, view.camera).colour.clamp(0, 1) for view in views]
    pairs = list(zip(views, pictures, strict=True))
    return (
        [view.target.psnr(picture) for view, picture in pairs],
        [float(view.target.ssim(picture)) for view, picture in pairs],
    )


@torch.no_grad()
def preview(path: Path, splats: Splats, views: list[View]) -> None:
    """Photographs beside renders."""
    rows = [
        side_by_side(
            [to_bytes(view.target.photo), to_bytes(render(splats, view.camera).colour)],
            [f"photograph {view.camera.name}", "rendered; not used in training"],
        )
        for view in views
    ]
    page = Image.fromarray(np.concatenate(rows))
    page.thumbnail((PREVIEW_WIDTH, 10_000))
    page.save(path, quality=PREVIEW_QUALITY, optimize=True)
