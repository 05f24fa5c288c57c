"""A DiT with the names and the arithmetic of the original repository, in plain torch.

``forward`` takes the frequencies of the timestep embedding from ``shift``: 0 is the original,
1 is what diffusers uses for the very same checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(width, heads), Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        m = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        x = x + m[2] * self.attn(norm(x) * (1 + m[1]) + m[0])
        return x + m[5] * self.mlp(norm(x) * (1 + m[4]) + m[3])


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(norm(x) * (1 + scale) + shift)


class OriginalDiT(nn.Module):
    def __init__(
        self, width=128, heads=2, depth=2, patch=2, channels=4, side=8, classes=40
    ) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(channels, width, patch, patch)
        self.t_embedder = nn.Module()
        self.t_embedder.mlp = nn.Sequential(
            nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.y_embedder = nn.Module()
        self.y_embedder.embedding_table = nn.Embedding(classes + 1, width)
        self.pos_embed = nn.Parameter(positions(width, side // patch), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch**2 * 2 * channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, shift: int = 0) -> Tensor:
        n, _, height, width = x.shape
        x = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        frequencies = torch.exp(-math.log(10000) * torch.arange(128) / (128 - shift))
        angles = t[:, None].float() * frequencies
        c = self.t_embedder.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        c = c + self.y_embedder.embedding_table(y)
        for block in self.blocks:
            x = block(x, c)
        p, h, w = self.patch, height // self.patch, width // self.patch
        x = self.final_layer(x, c).reshape(n, h, w, p, p, 2 * self.channels)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(n, 2 * self.channels, height, width)


def norm(x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def positions(width: int, side: int) -> Tensor:
    """Sin-cos positions ``[1, side * side, width]``; the first half belongs to the column."""
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    place = torch.arange(side, dtype=torch.float64)
    angles = place[:, None] * frequencies
    one = torch.cat([angles.sin(), angles.cos()], dim=1)
    row, column = one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)
    return torch.cat([column, row], dim=-1).reshape(1, side * side, width).float()


def random_dit(**sizes: int) -> OriginalDiT:
    """With weights large enough that every layer shows in the output."""
    model = OriginalDiT(**sizes).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name != "pos_embed":
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.data = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
    return model
