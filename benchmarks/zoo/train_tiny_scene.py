"""Trains ``builtin:tiny-scene``, a plush toy in 3D Gaussian Splatting, on one CPU thread.

The data is a folder with ``cameras.json``, ``images/`` and ``points3D.ply``; every 8th photograph
is held out::

    python benchmarks/zoo/train_tiny_scene.py --data MIKU_SCENE --checkpoints out-scene \\
        --out adapters/dpq_gaussian/builtin/tiny-scene

``--minutes`` pauses after so much time of the processor, ``--resume`` goes on from the last
checkpoint, with another ``--steps`` if need be; ``--export-only`` writes what the last checkpoint
holds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_scene_data import View, extent, read_points, read_views
from tiny_scene_export import export
from tiny_scene_model import MOMENTS, RATES, Model

from dpq_gaussian.rendering import RenderOptions, render

SEED = 1234
OPACITY_COST = SCALE_COST = 0.01
SH_EVERY = 1000  # steps after which another degree of the harmonics joins
MOVE_FROM, MOVE_EVERY = 500, 100
MOVE_UNTIL = 0.83  # share of the training, as 25,000 of 30,000 steps


class Run:
    """A training run: views, Gaussians, progress."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        self.args = args
        self.train_views, self.test_views = read_views(args.data, 1.0)
        self.small_views, _ = read_views(args.data, 0.5)
        self.extent = extent(self.train_views)
        self.checkpoint = args.checkpoints / "last.safetensors"
        self.step, self.seconds, self.log = 0, 0.0, []
        self.model = Model(read_points(args.data / "points3D.ply"), self.extent)
        if args.resume and self.checkpoint.exists():
            self.restore()

    def train(self) -> None:
        """Take the remaining steps, or as many as the time allows."""
        args = self.args
        begin = time.process_time() - self.seconds
        stop = time.process_time() + args.minutes * 60
        saved, losses = time.process_time(), []
        while self.step < args.steps and time.process_time() < stop:
            losses.append(self.take_step())
            self.seconds = time.process_time() - begin
            if self.step % args.log_every == 0 or self.step == args.steps:
                self.record(losses)
                losses = []
            if time.process_time() - saved > args.save_seconds:
                self.save()
                saved = time.process_time()
        self.save()

    def view(self) -> View:
        """The view of this step: each epoch in another order, small ones first."""
        views = self.train_views
        if self.step < self.args.small * self.args.steps:
            views = self.small_views
        epoch, at = divmod(self.step, len(views))
        return views[np.random.default_rng([SEED, epoch]).permutation(len(views))[at]]

    def take_step(self) -> float:
        """One step of Adam on one photograph; returns its loss."""
        model, progress = self.model, self.step / self.args.steps
        model.set_rate(progress)
        view = self.view()
        options = RenderOptions(sh_degree=min(3, self.step // SH_EVERY))
        picture = render(model.splats, view.camera, options).colour
        loss = view.target.loss(picture)
        opacity = torch.sigmoid(model.parameters["opacity_logits"]).mean()
        cost = OPACITY_COST * opacity + SCALE_COST * model.parameters["log_scales"].exp().mean()
        model.optimizer.zero_grad()
        (loss + cost).backward()
        model.optimizer.step()
        generator = torch.Generator().manual_seed(SEED + self.step)
        if progress < MOVE_UNTIL:
            if self.step >= MOVE_FROM and self.step % MOVE_EVERY == 0:
                model.move(self.args.budget, generator)
            model.explore(generator)
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def held_out(self) -> list[float]:
        """PSNR of every held-out photograph in decibels."""
        return [
            view.target.psnr(render(self.model.splats, view.camera).colour)
            for view in self.test_views
        ]

    def record(self, losses: list[float]) -> None:
        row = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "gaussians": len(self.model),
            "loss": round(float(np.mean(losses)), 5),
            "held_out_psnr": round(float(np.mean(self.held_out())), 3),
        }
        self.log.append(row)
        print(json.dumps(row), flush=True)

    def save(self) -> None:
        tensors = {}
        for name, parameter in self.model.parameters.items():
            tensors[f"model.{name}"] = parameter.detach()
            for key in MOMENTS:
                tensors[f"{key}.{name}"] = self.model.optimizer.state[parameter][key]
        progress = {"step": self.step, "seconds": self.seconds, "log": self.log}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        part = self.checkpoint.with_suffix(".part")
        save_file(tensors, part, metadata={"progress": json.dumps(progress)})
        part.replace(self.checkpoint)

    def restore(self) -> None:
        with safe_open(self.checkpoint, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(f"model.{name}") for name in RATES}
            self.model = Model(tensors, self.extent)
            for name, parameter in self.model.parameters.items():
                state = {key: file.get_tensor(f"{key}.{name}") for key in MOMENTS}
                step = torch.tensor(float(progress["step"]))
                self.model.optimizer.state[parameter] = {"step": step, **state}
        self.step, self.seconds, self.log = (progress[k] for k in ("step", "seconds", "log"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--budget", type=int, default=50_000, help="Gaussians")
    parser.add_argument("--small", type=float, default=0.2, help="share of half-size steps")
    parser.add_argument("--log-every", type=int, default=500)
    parser.add_argument("--save-seconds", type=float, default=120)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--export-only", action="store_true")
    args = parser.parse_args()
    args.resume |= args.export_only
    run = Run(args)
    if not args.export_only:
        run.train()
    if args.out:
        export(args.out, run)


if __name__ == "__main__":
    main()
