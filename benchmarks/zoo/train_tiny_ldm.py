"""Trains the tests' tiny LDM: an autoencoder and a UNet on Fashion-MNIST, eight CPU minutes.

A class-conditional latent diffusion model in the structure of the unconditional LDMs (residual
convolutions and plain attention), saved as an ``LDMPipeline`` of diffusers in float16::

    python benchmarks/zoo/train_tiny_ldm.py --data FASHION_MNIST --out tests/data/tiny-ldm
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline, UNet2DModel  # noqa: TID253
from fashion_mnist import LABELS, Split, epoch_batch, load_split, to_model_range
from torch.nn import functional

SEED = 1234
MARGIN = 2
"""Pixels of background around an image of 28: 32 can be halved twice."""

NULL_CLASS = len(LABELS)
TIMESTEPS = 1000

CARD = """\
# tiny-ldm

A latent diffusion model for tests: an autoencoder (1x32x32 -> 4x8x8, {vae:,} parameters) and a
class-conditional UNet ({unet:,} parameters, class {null} is "no class"), trained for {minutes:.0f}
minutes on one CPU thread by `benchmarks/zoo/train_tiny_ldm.py`; float16.

Trained on Fashion-MNIST (Zalando Research, MIT licence). Autoencoder: mean squared error
{reconstruction:.5f} on test images in [-1, 1]; UNet: mean squared error {loss:.4f} of the noise in
the last 200 steps.
"""


def autoencoder() -> AutoencoderKL:
    """The first stage: 1x32x32 pixels <-> 4x8x8 latents."""
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )


def unet() -> UNet2DModel:
    """The denoiser: residual blocks and attention at both resolutions."""
    return UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
        norm_num_groups=16,
        attention_head_dim=32,
        num_class_embeds=NULL_CLASS + 1,
    )


def scheduler() -> DDIMScheduler:
    """The noise schedule of LDM-4."""
    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def padded(images: torch.Tensor) -> torch.Tensor:
    """Images ``[n, 1, 28, 28]`` in [-1, 1] -> ``[n, 1, 32, 32]`` with more background."""
    return functional.pad(images, (MARGIN,) * 4, value=-1.0)


def learning_rate(done: float, peak: float) -> float:
    """Warm-up in the first 3 % of the run, then a cosine down to zero; ``done`` in [0, 1]."""
    return peak * min(1.0, done / 0.03 + 0.01) * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))


def steps(model: torch.nn.Module, count: int, peak: float) -> Iterator[tuple[int, list[float]]]:
    """Runs an optimizer around the caller's loop body, which calls ``backward``.

    Args:
        model: Whose parameters move.
        count: Number of steps.
        peak: Highest learning rate.

    Yields:
        Index of the step, and a list for its loss.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0, fused=True)
    started, log = time.perf_counter(), list[float]()
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step / count, peak)
        yield step, log
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            row = {"step": step + 1, "loss": float(np.mean(log[-100:]))}
            seconds = round(time.perf_counter() - started, 1)
            print(json.dumps({**row, "seconds": seconds}), flush=True)


def train_autoencoder(split: Split, count: int, batch: int) -> AutoencoderKL:
    """The first stage, and its ``scaling_factor``, with which latents have unit variance."""
    model = autoencoder().to(memory_format=torch.channels_last)
    for step, log in steps(model, count, 2e-3):
        images = padded(epoch_batch(split, step, batch, SEED)[0])
        posterior = model.encode(images).latent_dist
        found = model.decode(posterior.sample()).sample
        error = functional.mse_loss(found, images) + 0.1 * functional.l1_loss(found, images)
        (error + 1e-6 * posterior.kl().mean()).backward()
        log.append(error.item())
    return model.eval()


@torch.no_grad()
def encode(model: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Uint8 images ``[n, 28, 28]`` -> means of their latents ``[n, 4, 8, 8]``, not scaled."""
    parts = [
        model.encode(padded(to_model_range(part))).latent_dist.mode() for part in images.split(256)
    ]
    return torch.cat(parts)


def train_unet(latents: torch.Tensor, labels: torch.Tensor, count: int, batch: int) -> UNet2DModel:
    """The denoiser's averaged weights.

    Args:
        latents: ``[n, 4, 8, 8]`` of unit variance.
        labels: ``[n]``.
        count: Number of steps.
        batch: Images per step.
    """
    model = unet().to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)
    process = scheduler()
    for step, log in steps(model, count, 2e-3):
        rng = np.random.default_rng([SEED, step])
        picks = torch.from_numpy(rng.integers(len(latents), size=batch))
        dropped = torch.from_numpy(rng.random(batch) < 0.1)
        times = torch.from_numpy(rng.integers(TIMESTEPS, size=batch))
        clean = latents[picks]
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        noisy = process.add_noise(clean, noise, times)
        with torch.autocast("cpu", torch.bfloat16):
            classes = labels[picks].masked_fill(dropped, NULL_CLASS)
            found = model(noisy, times, class_labels=classes).sample
        error = functional.mse_loss(found.float(), noise)
        error.backward()
        log.append(error.item())
        weights = [parameter.data for parameter in model.parameters()]
        decay = min(0.995, (1 + step) / (10 + step))  # of the weights before this step
        torch._foreach_lerp_(list(average.parameters()), weights, 1 - decay)
    average.loss = float(np.mean(log[-200:]))
    return average.eval()


def save(out: Path, vae: AutoencoderKL, model: UNet2DModel, card: str) -> None:
    """Writes the pipeline in float16, with class names in its index."""
    parts = [part.half().to(memory_format=torch.contiguous_format) for part in (vae, model)]
    LDMPipeline(*parts, scheduler()).save_pretrained(out)
    index = out / "model_index.json"
    names = {str(number): name for number, name in enumerate(LABELS)}
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": names}, indent=2))
    (out / "README.md").write_text(card)


def main() -> None:
    """Reads the command line, trains and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--autoencoder-steps", type=int, default=900)
    parser.add_argument("--unet-steps", type=int, default=1200)
    parser.add_argument("--encoded", type=int, default=60_000, help="images the UNet learns from")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    started = time.perf_counter()
    split, test = load_split(args.data, "train"), load_split(args.data, "test")
    vae = train_autoencoder(split, args.autoencoder_steps, batch=32)
    latents = encode(vae, split.images[: args.encoded])
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    shown = padded(to_model_range(test.images[:512]))
    with torch.no_grad():
        error = functional.mse_loss(vae(shown).sample, shown).item()
    print(json.dumps({"reconstruction": error, **vae.config}, default=str), flush=True)
    scaled = latents * vae.config.scaling_factor
    model = train_unet(scaled, split.labels[: args.encoded], args.unet_steps, batch=64)
    card = CARD.format(
        vae=vae.num_parameters(),
        unet=model.num_parameters(),
        null=NULL_CLASS,
        minutes=(time.perf_counter() - started) / 60,
        reconstruction=error,
        loss=model.loss,
    )
    save(args.out, vae, model, card)


if __name__ == "__main__":
    main()
