"""Trains ``builtin:tiny-dit``, a class-conditional DiT on Fashion-MNIST, on one CPU thread.

First the classifier that judges the samples, then the transformer::

    out=adapters/dpq_diffusion/builtin/tiny-dit
    python benchmarks/zoo/train_tiny_classifier.py --data FASHION_MNIST --out $out/classifier
    python benchmarks/zoo/train_tiny_dit.py --data FASHION_MNIST --out $out

``--resume`` continues from the last checkpoint, and may do so with another ``--steps``.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch
from fashion_mnist import epoch_batch, load_split
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_dit_export import export
from tiny_dit_model import NULL_CLASS, TIMESTEPS, Diffusion, build_model
from tiny_dit_recipe import Progress, Recipe
from tiny_dit_sample import Sampling

SEED = 1234
MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: float) -> float:
    """Trapezoidal schedule: linear warmup, constant, then linear decay to nearly zero.

    Args:
        step: Index of the step about to be taken.
        steps: Number of steps of the whole run.
        peak: Learning rate of the constant part.
        warmup: Number of warmup steps.
        decay: Share of the run spent in the decay.

    Returns:
        The learning rate of this step.
    """
    left = (steps - step) / max(1.0, decay * steps)
    return peak * min(1.0, (step + 1) / warmup, left)


def save_checkpoint(
    path: Path,
    model: torch.nn.Module,
    average: torch.nn.Module,
    optimizer: torch.optim.AdamW,
    progress: Progress,
) -> None:
    """Writes weights, their average, optimizer state and progress into one safetensors file."""
    tensors = {f"average.{name}": param.detach() for name, param in average.named_parameters()}
    for name, param in model.named_parameters():
        tensors[f"model.{name}"] = param.detach()
        for key in MOMENTS:
            tensors[f"{key}.{name}"] = optimizer.state[param][key]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"progress": json.dumps(dataclasses.asdict(progress))})
    part.replace(path)


def load_checkpoint(
    path: Path, model: torch.nn.Module, average: torch.nn.Module, optimizer: torch.optim.AdamW
) -> Progress:
    """Restores what `save_checkpoint` wrote and returns the progress."""
    with safe_open(path, "pt") as file:
        saved = json.loads(file.metadata()["progress"])
        for name, param in average.named_parameters():
            param.data.copy_(file.get_tensor(f"average.{name}"))
        for name, param in model.named_parameters():
            param.data.copy_(file.get_tensor(f"model.{name}"))
            state = {key: file.get_tensor(f"{key}.{name}") for key in MOMENTS}
            optimizer.state[param] = {"step": torch.tensor(float(saved["step"])), **state}
    return Progress(saved["step"], saved["seconds"], saved["log"])


def load_average(path: Path, model: torch.nn.Module) -> None:
    """Sets the weights to the averaged ones of a checkpoint, of which nothing else is used."""
    with safe_open(path, "pt") as file:
        for name, param in model.named_parameters():
            param.data.copy_(file.get_tensor(f"average.{name}"))


class Run:
    """A training run: model, its running average, optimizer, data and progress."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(SEED)
        self.args = args
        self.split = load_split(args.data, "train")
        self.model = build_model(args.layers)
        if args.init:
            load_average(args.init, self.model)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.losses = torch.compile(Diffusion().losses, dynamic=False)
        self.checkpoint = args.checkpoints / "last.safetensors"
        self.progress = Progress(0, 0.0, [])
        if args.resume and self.checkpoint.exists():
            self.progress = load_checkpoint(
                self.checkpoint, self.model, self.average, self.optimizer
            )

    def train(self) -> None:
        """Takes all remaining steps, with log rows, checkpoints and exports on the way."""
        now = time.perf_counter()
        begin = now - self.progress.seconds
        next_save, next_export = now + self.args.save_seconds, now + self.args.first_export
        mark, terms = now, []
        while self.progress.step < self.args.steps:
            terms.append(self.take_step())
            now = time.perf_counter()
            self.progress.seconds = now - begin
            if self.progress.step % self.args.log_every == 0 or self.is_done():
                self.record(terms, now - mark)
                mark, terms = time.perf_counter(), []
            if now >= next_save:
                self.save()
                next_save = now + self.args.save_seconds
            if now >= next_export and not self.is_done():
                self.export(self.args.preview_per_class)
                next_export = time.perf_counter() + self.args.export_seconds
        self.save()
        self.export(self.args.per_class)

    def is_done(self) -> bool:
        """Returns whether all steps are taken."""
        return self.progress.step >= self.args.steps

    def take_step(self) -> tuple[float, float]:
        """Takes one optimizer step; returns both terms of its loss."""
        args, step = self.args, self.progress.step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr, args.warmup, args.decay)
        images, labels = epoch_batch(self.split, step, args.batch, SEED)
        rng = np.random.default_rng([SEED, step])
        dropped = torch.from_numpy(rng.random(args.batch) < args.label_dropout)
        labels = labels.masked_fill(dropped, NULL_CLASS)
        times = torch.from_numpy(rng.integers(TIMESTEPS, size=args.batch))
        noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
        with torch.autocast("cpu", torch.bfloat16):
            error, bound = self.losses(self.model, images, labels, times, noise)
        (error + bound).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.update_average()
        return error.item(), bound.item()

    def update_average(self) -> None:
        """Moves the average towards the weights, faster at the beginning."""
        step = self.progress.step
        decay = min(self.args.average_decay, (1 + step) / (10 + step))
        weights = [param.data for param in self.model.parameters()]
        torch._foreach_lerp_(list(self.average.parameters()), weights, 1.0 - decay)

    def record(self, terms: list[tuple[float, float]], seconds: float) -> None:
        """Appends a row to the log.

        Args:
            terms: What `take_step` returned for each step since the previous row.
            seconds: Time these steps took.
        """
        error, bound = np.mean(terms, axis=0).tolist()
        images = self.progress.step * self.args.batch
        row = {
            "step": self.progress.step,
            "images": images,
            "velocity_mse": round(error, 5),
            "bound_bits": round(bound, 5),
            "images_per_s": round(len(terms) * self.args.batch / seconds, 1),
            "lr": round(self.optimizer.param_groups[0]["lr"], 8),
            "seconds": round(self.progress.seconds, 1),
        }
        self.progress.log.append(row)
        print(json.dumps(row), flush=True)

    def save(self) -> None:
        """Writes the checkpoint."""
        save_checkpoint(self.checkpoint, self.model, self.average, self.optimizer, self.progress)

    def export(self, per_class: int) -> None:
        """Writes the pipeline folder as of now, with the averaged weights.

        Args:
            per_class: Samples per class to measure it with.
        """
        args = self.args
        recipe = Recipe(
            layers=args.layers,
            steps=args.steps,
            batch=args.batch,
            peak=args.lr,
            decay=args.decay,
            train_images=len(self.split),
        )
        how = Sampling(per_class=per_class, guidance=args.guidance)
        splits = {"train": self.split, "test": load_split(args.data, "test")}
        facts = export(args.out, self.average, recipe, self.progress, splits, how)
        measured = json.dumps(dataclasses.asdict(facts))
        print(f"exported at step {self.progress.step}: {measured}", flush=True)


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--out", type=Path, required=True, help="folder with classifier/ in it")
    parser.add_argument("--checkpoints", type=Path, default=Path("build/tiny_dit_ckpt"))
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--init", type=Path, help="checkpoint whose averaged weights to start from")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--steps", type=int, default=9700)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=200, help="warmup steps")
    parser.add_argument("--decay", type=float, default=0.5, help="share of steps in the decay")
    parser.add_argument("--label-dropout", type=float, default=0.1, help="for guidance")
    parser.add_argument("--average-decay", type=float, default=0.999, help="of the weights")
    parser.add_argument("--log-every", type=int, default=100, help="steps between log rows")
    parser.add_argument("--save-seconds", type=float, default=300, help="between checkpoints")
    parser.add_argument("--first-export", type=float, default=600, help="seconds until it")
    parser.add_argument("--export-seconds", type=float, default=900, help="between exports")
    parser.add_argument("--preview-per-class", type=int, default=4, help="samples until the end")
    parser.add_argument("--guidance", type=float, default=1.5, help="of the samples")
    parser.add_argument("--per-class", type=int, default=50, help="samples of the final export")
    Run(parser.parse_args()).train()


if __name__ == "__main__":
    main()
