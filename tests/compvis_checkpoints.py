"""Checkpoints of latent diffusion models as CompVis' trainer writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from compvis_ldm import Autoencoder, LatentDiffusion, TextTransformer, randomized
from compvis_unet import UNet
from torch import nn

BETAS = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
ROWS, CONTEXT = 11, 64

YAML = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.0015
    linear_end: 0.0195
    image_size: 8
    unet_config:
      params: {heads}
"""


class Classes(nn.Module):
    def __init__(self, rows: int = ROWS) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, CONTEXT)


class Text(nn.Module):
    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer


def unconditional(**unet) -> LatentDiffusion:
    options = unet if "heads" in unet else {"head_channels": 32, **unet}
    return randomized(LatentDiffusion(UNet(**options), Autoencoder(words=16), None, BETAS))


def by_class(rows: int = ROWS) -> LatentDiffusion:
    first = Autoencoder(words=16)
    return randomized(LatentDiffusion(UNet(context=CONTEXT), first, Classes(rows), BETAS))


def by_text() -> LatentDiffusion:
    text = TextTransformer(words=128, width=CONTEXT, depth=2, tokens=77, head=8)
    first = Autoencoder(widths=(32, 32, 32, 32), latents=4)
    unet = UNet(channels=4, context=CONTEXT, heads=8)
    return randomized(LatentDiffusion(unet, first, Text(text), BETAS))


def save(model: nn.Module, folder: Path, heads: str = "{num_head_channels: 32}") -> str:
    """A checkpoint as trainers write it, and its config."""
    (folder / "model.yaml").write_text(YAML.format(heads=heads))
    content = {"state_dict": model.state_dict(), "global_step": 7, "epoch": 1}
    torch.save(content, folder / "model.ckpt")  # noqa: TID251 - what other people's files are
    return str(folder / "model.ckpt")
