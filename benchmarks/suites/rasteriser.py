"""The CPU rasteriser: checked against the per-pixel reference, then timed on a real scene.

    python benchmarks/suites/rasteriser.py --scene fourth_st_131k_sh3.ply

First pictures and gradients of small random scenes are compared with the plain reference in
float64; a disagreement ends the run. Then every view of the scene's rig is drawn: forward as a
viewer does, and forward and backward as training does, on one thread and on all. The first call,
which compiles or loads the kernels, is not timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpq_gaussian.cameras import Camera
from dpq_gaussian.loading import load
from dpq_gaussian.rendering import RenderOptions, Splats, render
from dpq_gaussian.rendering.reference import render_reference
from dpq_gaussian.rendering.viewpoints import rig

sys.path.insert(0, str(Path(__file__).parents[1]))
import record  # benchmarks/record.py

TARGET = 0.5  # seconds: 131 k Gaussians forward at 512 x 512 on 2 cores
MAX_PICTURE, MAX_GRADIENT = 2e-6, 2e-5  # absolute; relative to the norm
CHECKS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scene", default="builtin:tiny-scene")
    parser.add_argument("--size", type=int, default=512, help="width and height in pixels")
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--repeat", type=int, default=3, help="timings of every view")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    agreement = check(args.seed)
    print("against the reference: " + ", ".join(f"{n} {v:.1e}" for n, v in agreement.items()))
    scene = load(args.scene).scene
    cameras = rig(scene, size=args.size, views=args.views)
    threads = torch.get_num_threads()
    results: dict[str, Any] = {"agreement": agreement, "gaussians": len(scene)}
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        results[f"threads {count}"] = values = measure(Splats.of(scene), cameras, args.repeat)
        for what, row in values.items():
            print(f"{count} threads  {what:<22}{row['median_seconds']:>8.4f} s, "
                  f"slowest view {row['slowest_seconds']:.4f} s")  # fmt: skip
    slowest = results[f"threads {threads}"]["forward"]["slowest_seconds"]
    print(f"target: forward under {TARGET} s: {'met' if slowest < TARGET else 'MISSED'}")
    if not args.no_record:
        spec = {"scene": Path(args.scene).name, "size": args.size, "views": len(cameras),
                "repeat": args.repeat}  # fmt: skip
        record.append("rasteriser", spec=spec, seed=args.seed, results=results)


def check(seed: int) -> dict[str, float]:
    """Largest errors of pictures and gradients over random small scenes."""
    worst = {"picture": 0.0, "gradient": 0.0}
    for at in range(CHECKS):
        generator = torch.Generator().manual_seed(seed + at)
        attributes = random_attributes(generator, at % 4)
        camera = random_camera(seed + at)
        options = RenderOptions(background=(0.2, 0.5, 0.9), antialiased=at % 2 == 1)
        fast, slow = ([t.to(kind).clone().requires_grad_() for t in attributes]
                      for kind in (torch.float32, torch.float64))  # fmt: skip
        ours, truth = (render(Splats(*fast), camera, options).colour,
                       render_reference(Splats(*slow), camera, options).colour)  # fmt: skip
        pull = torch.randn(truth.shape, generator=generator)
        (ours * pull).sum().backward()
        (truth * pull).sum().backward()
        worst["picture"] = max(worst["picture"], float((ours - truth).detach().abs().max()))
        for mine, other in zip(fast, slow, strict=True):
            if other.grad is not None and other.grad.any():
                error = float((mine.grad - other.grad).norm() / other.grad.norm())
                worst["gradient"] = max(worst["gradient"], error)
    if worst["picture"] > MAX_PICTURE or worst["gradient"] > MAX_GRADIENT:
        raise SystemExit(f"the rasteriser is wrong, nothing is timed: {worst}")
    return worst


def random_attributes(generator: torch.Generator, degree: int) -> list[Tensor]:
    """60 Gaussians around the origin, in the order of Splats."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    scales = -4 + 3.5 * torch.rand(60, 3, generator=generator)
    rest = 0.3 * normal(60, (degree + 1) ** 2 - 1, 3)
    return [normal(60, 3), scales, normal(60, 4), 2 * normal(60), normal(60, 3), rest]


def random_camera(seed: int) -> Camera:
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    return Camera(width=50, height=37, fx=rng.uniform(20, 80), fy=rng.uniform(20, 80), cx=25.0,
                  cy=18.5, rotation=rotation,
                  translation=np.array([0, 0, rng.uniform(0, 4)]))  # fmt: skip


def measure(splats: Splats, cameras: Sequence[Camera], repeat: int) -> dict[str, dict[str, float]]:
    """Seconds per view: median over views, and of the slowest view, of its fastest timing."""
    learning = Splats(*(tensor.clone().requires_grad_() for tensor in splats.tensors()))
    plain, smooth = RenderOptions(weights=False), RenderOptions(weights=False, antialiased=True)

    def train(camera: Camera) -> None:
        render(learning, camera, plain).colour.square().sum().backward()

    methods: dict[str, Callable[[Camera], object]] = {
        "forward": lambda camera: render(splats, camera, plain),
        "forward, anti-aliased": lambda camera: render(splats, camera, smooth),
        "forward, weights": lambda camera: render(splats, camera),
        "forward and backward": train,
    }
    found = {}
    for name, method in methods.items():
        method(cameras[0])
        seconds = [min(timed(method, camera) for _ in range(repeat)) for camera in cameras]
        found[name] = {
            "median_seconds": round(statistics.median(seconds), 5),
            "slowest_seconds": round(max(seconds), 5),
        }
    return found


def timed(method: Callable[[Camera], object], camera: Camera) -> float:
    begin = time.perf_counter()
    method(camera)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
