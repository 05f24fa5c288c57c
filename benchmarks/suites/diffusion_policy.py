"""What the sensitive layers of a DiT deserve: policies at equal bytes, on ``builtin:tiny-dit``.

    python benchmarks/suites/diffusion_policy.py --bits 2 --bits 1

A policy says how many bits the weights of some groups of layers get; the matrices of the blocks get
what the byte budget leaves, by a mix of two neighbouring subvector lengths. The budget is what
"ends at 8 bits" takes with all others at the nominal width. Samples are compared with those of the
uncompressed model at the same seeds.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import append
from torch import Tensor

from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.planning.plan import make_plan
from dpq_core.plugin.image_metrics import mean_squared_error, ssim
from dpq_core.run import Run
from dpq_core.spec import PRESET_D, Override, QuantSpec
from dpq_diffusion.adapter import DiffusionAdapter
from dpq_diffusion.evaluation.fidelity import latent_mse
from dpq_diffusion.evaluation.reference import Reference
from dpq_diffusion.evaluation.scorer import CLASSIFIER, Scorer, class_agreement
from dpq_diffusion.evaluation.tiny_classifier import ClassifierExtractor, load_classifier
from dpq_diffusion.folders import BUILTIN
from dpq_diffusion.pipelines.conditions import Item
from dpq_diffusion.pipelines.loading import load_pipeline
from dpq_diffusion.sampling.image_pairs import ImageFidelity
from dpq_diffusion.sampling.images import ArrayImages
from dpq_diffusion.sampling.samplers import RequestedSettings, make_sampler

SOURCE = "builtin:tiny-dit"
RUN = Run(device="cpu")

GROUPS = {
    "patch": ("*pos_embed.proj.weight",),
    "time": ("*timestep_embedder*",),
    "final": ("*proj_out_?.weight",),
    "modulation": ("*norm1.linear.weight",),
}
"""Group -> patterns of its tensors; the rest are the matrices of attention and feed-forward."""

KEEP, MORE, EIGHT = 16, 0, "ends at 8 bits"
POLICIES: dict[str, dict[str, int]] = {
    "all alike": {},
    "ends at 4 bits": {"patch": 4, "time": 4, "final": 4},
    EIGHT: {"patch": 8, "time": 8, "final": 8},
    "ends kept": {"patch": KEEP, "time": KEEP, "final": KEEP},
    "patch and final at 8 bits": {"patch": 8, "final": 8},
    "time at 8 bits": {"time": 8},
    "time at 8 bits, patch and final at 4": {"patch": 4, "time": 8, "final": 4},
    "time and patch at 8 bits, final at 4": {"patch": 8, "time": 8, "final": 4},
    "modulation one width up": {"modulation": MORE},
    "ends at 4 bits, modulation one width up": {
        "patch": 4,
        "time": 4,
        "final": 4,
        "modulation": MORE,
    },
}
"""Group -> bits per weight; KEEP: as it is, MORE: the next wider preset."""

LENGTHS = (12, 10, 8, 7, 6, 5, 4, 3, 2)
"""Subvector lengths that the matrices may get; K is 256 throughout."""

WIDTHS = {**PRESET_D, 8: 1}
"""Bits per weight -> subvector length."""


@dataclass(frozen=True)
class Settings:
    """What is drawn."""

    images: int = 100
    steps: int = 25
    guidance: float = 1.5
    seed: int = 0
    batch: int = 50


def rules(policy: dict[str, int], nominal: int, lengths: dict[str, int]) -> list[Override]:
    """One override per tensor, after which nothing of the adapter's own policy is left.

    Args:
        policy: group -> bits.
        nominal: width of the preset.
        lengths: tensor -> subvector length, where the policy does not say otherwise.
    """
    found = []
    for name, d in lengths.items():
        group = next((g for g, ps in GROUPS.items() if _matches(name, ps)), "")
        bits = policy.get(group)
        if bits == KEEP:
            found.append(Override(name, None))
        else:
            bits = nominal + 1 if bits == MORE else bits
            found.append(Override(name, {"d": WIDTHS[bits] if bits else d, "K": 256}))
    return found


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def tensors(spec: QuantSpec) -> list[str]:
    """Names of what is compressed."""
    adapter = DiffusionAdapter()
    return [t.name for t in make_plan(adapter.open(SOURCE), adapter, spec) if t.spec is not None]


def fitted(policy: dict[str, int], bits: int, budget: int) -> list[Override]:
    """The policy with the shortest subvectors in the matrices that the budget allows.

    Empty where there are none: codebooks of long subvectors are large.
    """
    adapter, spec = DiffusionAdapter(), QuantSpec.preset(bits)
    checkpoint = adapter.open(SOURCE)
    names = tensors(spec)
    # Every third tensor first: the mix then hits all kinds of layers and all blocks.
    order = [name for start in range(3) for name in names[start::3]]
    best: list[Override] = []
    for longer, shorter in itertools.pairwise(LENGTHS):
        for count in range(len(order)):
            lengths = dict.fromkeys(names, longer) | dict.fromkeys(order[:count], shorter)
            found = rules(policy, bits, lengths)
            if make_plan(checkpoint, adapter, spec, found).nbytes <= budget:
                best = found
    return best


def draw(source: str, items: list[Item], settings: Settings) -> tuple[Tensor, Tensor]:
    """Images uint8 ``[N, H, W, C]`` and latents ``[N, steps, C, H, W]``."""
    sampler = make_sampler(
        load_pipeline(source, RUN),
        RequestedSettings(steps=settings.steps, guidance=settings.guidance, scheduler="auto"),
    )
    images, latents = [], []
    for first in range(0, len(items), settings.batch):
        seen: list[Tensor] = []
        batch = items[first : first + settings.batch]
        images.append(sampler.draw(batch, lambda _, values, seen=seen: seen.append(values.clone())))
        latents.append(torch.stack(seen, dim=1))
    return torch.cat(images), torch.cat(latents)


def measure(
    bits: int,
    chosen: list[str],
    items: list[Item],
    original: tuple[Tensor, Tensor],
    settings: Settings,
) -> Iterator[dict[str, Any]]:
    """One row per policy."""
    extractor = ClassifierExtractor(load_classifier(BUILTIN / "tiny-dit" / CLASSIFIER))
    scorer = Scorer(extractor=extractor, reference=Reference(name="none"), knows_classes=True)
    adapter, spec = DiffusionAdapter(), QuantSpec.preset(bits)
    nominal = dict.fromkeys(tensors(spec), PRESET_D[bits])
    checkpoint, basis = adapter.open(SOURCE), rules(POLICIES[EIGHT], bits, nominal)
    budget = make_plan(checkpoint, adapter, spec, basis).nbytes
    labels = [item.condition.label for item in items]
    for name in chosen:
        overrides = fitted(POLICIES[name], bits, budget)
        if not overrides:
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            report = compress(
                adapter, SOURCE, out, spec, overrides, options=CompressOptions(probe=False)
            )
            images, latents = draw(str(out), items, settings)
        weights = [t for t in report.tensors if t.relative_error is not None]
        fidelity = ImageFidelity(mean_squared_error(images, original[0]), ssim(images, original[0]))
        yield {
            "bits": bits,
            "policy": name,
            "bytes": sum(t.nbytes for t in report.tensors),
            "bits_in_matrices": _bits(weights),
            "psnr_dB": fidelity.psnr,
            "ssim": fidelity.ssim.mean().item(),
            "latent_mse": latent_mse(latents, original[1]).mean().item(),
            "agreement": class_agreement(ArrayImages(images), labels, scorer).value,
        }


def _bits(tensors: list[Any]) -> float:
    """True bits per weight of attention and feed-forward."""
    patterns = tuple(p for group in GROUPS.values() for p in group)
    rest = [t for t in tensors if not _matches(t.name, patterns)]
    return 8 * sum(t.nbytes for t in rest) / sum(8 * t.nbytes / t.bits_per_weight for t in rest)


def main() -> None:
    """Measure every policy, print a table, append one record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, action="append", choices=sorted(PRESET_D))
    parser.add_argument("--images", type=int, default=Settings.images)
    parser.add_argument("--policy", action="append", choices=list(POLICIES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(images=options.images)
    sampler = make_sampler(load_pipeline(SOURCE, RUN), RequestedSettings(steps=1, scheduler="auto"))
    conditions = sampler.conditions((), ())
    items = [
        Item(index=i, seed=settings.seed + i, condition=conditions[i % len(conditions)])
        for i in range(settings.images)
    ]
    original = draw(SOURCE, items, settings)
    rows = []
    print("| bits | policy | bytes | in the matrices | PSNR | SSIM | latent MSE | agreement |")
    print("|---|---|---|---|---|---|---|---|")
    for bits in options.bits or (2, 1):
        started = time.perf_counter()
        for row in measure(bits, options.policy or list(POLICIES), items, original, settings):
            rows.append(row)
            print(
                f"| {bits} | {row['policy']} | {row['bytes']:,} | {row['bits_in_matrices']:.2f} "
                f"| {row['psnr_dB']:.2f} dB | {row['ssim']:.4f} | {row['latent_mse']:.5f} "
                f"| {row['agreement']:.0%} |",
                flush=True,
            )
        print(f"<!-- {time.perf_counter() - started:.0f} s -->", flush=True)
    append("diffusion_policy", seed=settings.seed, spec=settings, results=rows)


if __name__ == "__main__":
    main()
