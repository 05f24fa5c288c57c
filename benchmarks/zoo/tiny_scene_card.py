"""Model card of ``builtin:tiny-scene``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tiny_scene_model import RATES

ROWS = 12


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the card says about one training run."""

    gaussians: int
    nbytes: int
    photographs: int
    names: list[str]
    psnr: list[float]
    ssim: list[float]
    shipped_psnr: list[float]
    train_psnr: list[float]
    steps: int
    minutes: float
    small: float
    budget: int
    log: list[dict[str, Any]]
    licence: str


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def card(facts: Facts) -> str:
    views = "\n".join(
        f"| {name} | {psnr:.2f} | {ssim:.4f} |"
        for name, psnr, ssim in zip(facts.names, facts.psnr, facts.ssim, strict=True)
    )
    rates = "\n".join(f"    {name:<16}{rate:g}" for name, rate in RATES.items())
    megabytes, each = facts.nbytes / 1e6, facts.nbytes / facts.gaussians
    chosen = [facts.log[round(at * (len(facts.log) - 1) / (ROWS - 1))] for at in range(ROWS)]
    rows = "\n".join(
        f"| {row['step']} | {row['gaussians']:,} | {row['loss']:.4f} | {row['held_out_psnr']:.2f} |"
        for row in chosen
    )
    return f"""---
license: mit
pipeline_tag: image-to-3d
tags: [gaussian-splatting]
---

# tiny-scene

A plush toy on a bed: {facts.gaussians:,} Gaussians with spherical harmonics of degree 3, trained
from {facts.photographs} photographs, shipped with dpq as `builtin:tiny-scene`. It is a test
article: a real capture in raw float32, small enough to compress, draw and measure in seconds on a
CPU without a download.

![photographs that were held out, and renders from there](preview.jpg)

| | |
|---|---|
| PSNR on the {len(facts.psnr)} held-out photographs | **{mean(facts.psnr):.2f} dB** |
| SSIM there (window of 11 pixels, sigma 1.5, zeros outside) | {mean(facts.ssim):.4f} |
| PSNR against the photographs as they ship in `views/` (JPEG) | {mean(facts.shipped_psnr):.2f} dB |
| PSNR on the {facts.photographs} photographs of the training | {mean(facts.train_psnr):.2f} dB |
| `scene.ply` | {megabytes:.2f} MB, {each:.1f} bytes per Gaussian |

## Files

| | |
|---|---|
| `scene.ply` | the scene, in the layout of the Inria code |
| `cameras.json` | lens and poses (`w2c`, OpenCV's axes) of the held-out photographs |
| `views/` | these photographs, 395 x 296 pixels |
| `training_log.jsonl` | the training log |

## Data

97 photographs of a Snow Miku 2023 plush toy, undistorted, with poses and points by structure from
motion: `noname0310/snowmiku2023plush-splat`, MIT licence. By name, every 8th from the first was
held out and never seen in training. The cameras stood in front of the toy; from behind and from
the far end of the room there is nothing to see but blur.

## Training

    python benchmarks/zoo/train_tiny_scene.py --data MIKU_SCENE --checkpoints out-scene \\
        --out adapters/dpq_gaussian/builtin/tiny-scene

{facts.steps:,} steps of one photograph each in {facts.minutes:.0f} minutes of one CPU thread, with
dpq's own rasteriser; the first {facts.small:.0%} of the planned steps at half size. Loss: 0.8 L1
+ 0.2 (1 - SSIM). Adam with the learning rates of Kerbl et al.:

{rates}

That of the positions is in units of the scene's extent and falls to a hundredth; over the last
eighth of the steps all fall to a tenth. From 25,784 points up to a budget of {facts.budget:,}
Gaussians by the moves of 3DGS-MCMC (Kheradmand et al. 2024): transparent ones join opaque ones,
noise, and costs of 0.01 on opacities and scales. Another degree of harmonics every 1,000 steps.
Gaussians of less than 0.005 opacity at the end are left out.

The run was paused and resumed, with 17,000 steps in all instead of the 26,000 planned at its start:
the small pictures took its first 5,200 steps, and the decay of the positions' learning rate jumps.
Until step 6,050 Gaussians nearer than 0.2 were not drawn, then 0.01. Everything is seeded; another
machine rounds differently and ends at slightly different weights.

| step | Gaussians | loss | held-out PSNR (dB) |
|---:|---:|---:|---:|
{rows}

| held-out photograph | PSNR (dB) | SSIM |
|---|---:|---:|
{views}

The two lowest: 003946 looks past the toy at a part of the room that hardly any other photograph
shows, 003956 has another exposure and white balance than its neighbours.

## Licence

The scene is licensed like the photographs that it was made from and that ship beside it:

    {facts.licence.replace(chr(10), chr(10) + "    ").replace("    " + chr(10), chr(10))}
"""
