"""Trains the classifier of ``builtin:tiny-dit`` and stores its reference statistics.

One thread, a few minutes::

    python benchmarks/zoo/train_tiny_classifier.py --data FASHION_MNIST \\
        --out adapters/dpq_diffusion/builtin/tiny-dit/classifier

The statistics are mean and covariance of the features of all test images, and their labels'
histogram: the reference of the Fréchet distance.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from fashion_mnist import LABELS, Split, epoch_batch, load_split, to_model_range
from safetensors.torch import save_file
from torch.nn import functional

from dpq_diffusion.tiny_classifier import ClassifierConfig, TinyClassifier, save_classifier

SEED = 1234
MAX_SHIFT = 2  # pixels
STATISTICS = "reference.safetensors"


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


@torch.no_grad()
def reference_statistics(model: TinyClassifier, split: Split) -> tuple[float, dict]:
    """Classifies a split and collects the statistics of its features.

    Args:
        model: The trained classifier.
        split: The test split.

    Returns:
        The accuracy, and the tensors ``mu`` float64 [F], ``sigma`` float64 [F, F] (divided by
        N - 1, as ADM's reference batches) and ``label_counts`` int64 [classes].
    """
    features, hits = [], 0
    for images, labels in zip(split.images.split(500), split.labels.split(500), strict=True):
        features.append(model.features(to_model_range(images)))
        hits += int((model.head(features[-1]).argmax(1) == labels).sum())
    table = torch.cat(features).double()
    tensors = {
        "mu": table.mean(0),
        "sigma": torch.cov(table.T),
        "label_counts": torch.bincount(split.labels, minlength=len(LABELS)),
    }
    return hits / len(split), tensors


def main() -> None:
    """Reads the command line, trains, and writes classifier and statistics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = TinyClassifier(ClassifierConfig()).to(memory_format=torch.channels_last)
    train(model, load_split(args.data, "train"), args.epochs, args.batch, args.lr)
    test = load_split(args.data, "test")
    accuracy, tensors = reference_statistics(model, test)
    save_classifier(model, args.out)
    facts = {"images": str(len(test)), "split": "test", "accuracy": f"{accuracy:.4f}"}
    save_file(tensors, args.out / STATISTICS, metadata=facts)
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"parameters": parameters, "test_accuracy": accuracy}))


if __name__ == "__main__":
    main()
