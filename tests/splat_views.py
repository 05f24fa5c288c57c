"""A scene with cameras around it, and photographs that are its own pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from splat_files import changed, make_scene

from dpq_gaussian.cameras import Camera, read_cameras
from dpq_gaussian.formats import write_scene
from dpq_gaussian.rendering import RenderOptions, render
from dpq_gaussian.scene import Scene

WIDTH, HEIGHT = 48, 36


def visible_scene(n: int = 300, degree: int = 1, seed: int = 0) -> Scene:
    """Gaussians large enough to cover much of the pictures."""
    scene = make_scene(n, degree, seed)
    return changed(
        scene,
        positions=scene.positions / 2,
        log_scales=scene.log_scales * np.float32(0.5) - np.float32(0.3),
        rotations=scene.rotations / np.linalg.norm(scene.rotations, axis=1, keepdims=True),
    )


def write_cameras(folder: Path, count: int = 9, distance: float = 8.0) -> Path:
    """``cameras.json`` of a ring of cameras ``v0``, ``v1``, ... that look at the origin."""
    frames = []
    for at in range(count):
        turn = 2 * np.pi * at / count
        rotation = np.array(
            [[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]]
        )
        w2c = np.concatenate([rotation, [[0], [0], [distance]]], axis=1)
        frames.append({"name": f"v{at}", "w2c": w2c.tolist()})
    lens = {"width": WIDTH, "height": HEIGHT, "fx": 50, "fy": 50, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cameras.json"
    path.write_text(json.dumps(lens | {"frames": frames}))
    return path


def draw(scene: Scene, camera: Camera, **options: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A picture ``[H, W, 3]``, clamped to [0, 1]."""
    drawn = render(scene, camera, RenderOptions(weights=False, **options))
    return np.clip(drawn.colour.numpy(), 0, 1)


def take_photographs(scene: Scene, folder: Path, scale: int = 1) -> None:
    """Draw ``images/NAME.png`` for every camera in the folder."""
    (folder / "images").mkdir(exist_ok=True)
    for camera in read_cameras(folder):
        picture = draw(scene, camera.scaled(scale))
        levels = (picture * 255).round().astype(np.uint8)
        Image.fromarray(levels).save(folder / "images" / f"{camera.name}.png")


def photographed(folder: Path) -> Path:
    """A folder with ``scene.ply``, ``cameras.json`` and ``images``."""
    scene = visible_scene()
    write_cameras(folder)
    take_photographs(scene, folder)
    write_scene(scene, folder / "scene.ply", "ply")
    return folder
