"""Photographs, cameras and the points to start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.spatial import cKDTree
from torch import Tensor

from dpq_gaussian.calibration.loss import TargetPicture
from dpq_gaussian.cameras import Camera, held_out, read_cameras

C0 = 0.28209479177387814


@dataclass(frozen=True)
class View:
    camera: Camera
    target: TargetPicture


def read_views(folder: Path, factor: float) -> tuple[list[View], list[View]]:
    """Training and held-out views of a scene, their sides ``factor`` times as long."""
    train, test = held_out(read_cameras(folder))
    return [view(c, factor) for c in train], [view(c, factor) for c in test]


def view(camera: Camera, factor: float) -> View:
    camera = camera.scaled(factor)
    with Image.open(camera.image) as file:
        picture = file.convert("RGB")
        if factor != 1:
            picture = picture.resize((camera.width, camera.height), Image.Resampling.BOX)
    return View(camera, TargetPicture(torch.from_numpy(np.array(picture, np.float32)) / 255))


def extent(views: list[View]) -> float:
    """Radius of the cameras around their mean, in units of the scene, times 1.1."""
    centres = np.stack([view.camera.centre for view in views])
    return float(1.1 * np.linalg.norm(centres - centres.mean(0), axis=1).max())


def read_points(path: Path) -> dict[str, Tensor]:
    """Gaussians at the points of a structure-from-motion cloud."""
    from plyfile import PlyData

    vertex = PlyData.read(path)["vertex"].data
    points = np.stack([vertex[axis] for axis in "xyz"], 1).astype(np.float32)
    colours = np.stack([vertex[name] for name in ("red", "green", "blue")], 1) / 255
    distances, _ = cKDTree(points).query(points, k=4)
    spacing = np.sqrt((distances[:, 1:] ** 2).mean(1)).clip(1e-4)
    count = len(points)
    return {
        "positions": torch.from_numpy(points),
        "log_scales": torch.from_numpy(np.log(spacing).astype(np.float32))[:, None].repeat(1, 3),
        "rotations": torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        "opacity_logits": torch.full((count,), float(np.log(0.1 / 0.9))),
        "sh_dc": torch.from_numpy(((colours - 0.5) / C0).astype(np.float32)),
        "sh_rest": torch.zeros(count, 15, 3),
    }
