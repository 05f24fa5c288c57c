"""Trains the classifier of ``builtin:tiny-dit`` and stores its reference statistics.

One thread, a few minutes::

    python benchmarks/zoo/train_tiny_classifier.py --data FASHION_MNIST \\
        --out adapters/dpq_diffusion/builtin/tiny-dit/classifier

The statistics are those of `dpq eval`: mean and covariance of the features of all test images for
the Fréchet distance, and some of the features themselves for precision and recall.
``--statistics-only`` makes them anew with the classifier that is there.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fashion_mnist import Split, epoch_batch, load_split
from tiny_dit_sample import accuracy
from torch.nn import functional

from dpq_diffusion.evaluation.quality import extract
from dpq_diffusion.evaluation.reference import write_statistics
from dpq_diffusion.evaluation.scorer import STATISTICS
from dpq_diffusion.evaluation.tiny_classifier import (
    ClassifierConfig,
    ClassifierExtractor,
    TinyClassifier,
    load_classifier,
    save_classifier,
)
from dpq_diffusion.sampling.images import ArrayImages

SEED = 1234
MAX_SHIFT = 2  # pixels
NEIGHBOURHOOD = 2000  # test images whose features are kept; all distances between them count


def shifted(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Moves the whole batch by up to MAX_SHIFT pixels, filling with background."""
    down, right = (int(n) for n in rng.integers(0, 2 * MAX_SHIFT + 1, 2))
    height, width = images.shape[-2:]
    padded = functional.pad(images, [MAX_SHIFT] * 4, value=-1.0)
    return padded[..., down : down + height, right : right + width]


def train(model: TinyClassifier, split: Split, epochs: int, batch: int, peak: float) -> None:
    """Trains in place with AdamW under a one-cycle schedule.

    Args:
        model: The untrained classifier.
        split: The training split.
        epochs: Passes over it.
        batch: Images per step.
        peak: Highest learning rate.
    """
    steps = epochs * (len(split) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps, pct_start=0.2)
    model.train()
    begin, total = time.perf_counter(), 0.0
    for step in range(steps):
        images, labels = epoch_batch(split, step, batch, SEED)
        images = shifted(images, np.random.default_rng([SEED, step]))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=0.05)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        total += loss.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            seconds = time.perf_counter() - begin
            print(f"step {step + 1}/{steps} loss {total / (step % 100 + 1):.4f} {seconds:.0f} s")
            total = 0.0
    model.eval()


def write_reference(model: TinyClassifier, split: Split, path: Path) -> None:
    """Writes what samples are compared with.

    Args:
        model: The trained classifier.
        split: The test split.
        path: The ``.safetensors`` to write.
    """
    images = ArrayImages(split.images.unsqueeze(-1), "test images")
    found = extract(images, ClassifierExtractor(model), keep_features=True).statistics
    assert found.features is not None
    write_statistics(path, replace(found, features=found.features[:NEIGHBOURHOOD]))


def main() -> None:
    """Reads the command line, trains, and writes classifier and statistics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--statistics-only", action="store_true", help="train nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    if not args.statistics_only:
        model = TinyClassifier(ClassifierConfig()).to(memory_format=torch.channels_last)
        train(model, load_split(args.data, "train"), args.epochs, args.batch, args.lr)
        save_classifier(model, args.out)
    model, test = load_classifier(args.out), load_split(args.data, "test")
    write_reference(model, test, args.out / STATISTICS)
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"parameters": parameters, "test_accuracy": accuracy(model, test)}))


if __name__ == "__main__":
    main()
