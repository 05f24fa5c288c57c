"""The UNet of latent diffusion with CompVis' tensor names, restated in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def group_norm(channels: int, eps: float = 1e-5) -> nn.Module:
    return nn.GroupNorm(32, channels, eps=eps)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, embedding: int, *, scale_shift: bool) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(
            group_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding, outputs * (2 if scale_shift else 1))
        )
        self.out_layers = nn.Sequential(
            group_norm(outputs), nn.SiLU(), nn.Dropout(0), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h, e = self.in_layers(x), self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + e)
        return self.skip_connection(x) + h


class PlainAttention(nn.Module):
    """Over all pixels; q, k and v of one head lie together, or q of all heads come first."""

    def __init__(self, channels: int, heads: int, *, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        flat = x.reshape(n, c, height * width)
        qkv = self.qkv(self.norm(flat))
        if self.new_order:
            q, k, v = qkv.reshape(n, 3, self.heads, c // self.heads, -1).unbind(1)
        else:
            q, k, v = qkv.reshape(n, self.heads, 3, c // self.heads, -1).unbind(2)
        weights = torch.softmax(q.transpose(-1, -2) @ k / math.sqrt(c // self.heads), dim=-1)
        out = (v @ weights.transpose(-1, -2)).reshape(n, c, -1)
        return x + self.proj_out(out).reshape(x.shape)


class CrossAttention(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.reshape(*t.shape[:2], self.heads, -1).transpose(1, 2)

        q, k, v = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(1, 2).reshape(x.shape))


class GatedGelu(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * nn.functional.gelu(gate)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(width, width, heads)
        self.ff = nn.Module()
        self.ff.net = nn.Sequential(
            GatedGelu(width, 4 * width), nn.Dropout(0), nn.Linear(4 * width, width)
        )
        self.attn2 = CrossAttention(width, context, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff.net(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context, heads)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.interpolate(x, scale_factor=2, mode="nearest"))


class UNet(nn.Module):
    """Two residual blocks per resolution on the way up for each one on the way down.

    Args:
        channels: of the latents.
        widths: per resolution.
        attended: resolutions with attention, by number.
        depth: residual blocks per resolution.
        heads: of attention; with ``head_channels`` their width instead.
        head_channels: width of a head; 0 is not used.
        context: width of the context; 0: plain attention.
        scale_shift: the timestep scales as well as shifts.
        new_order: of q, k and v in plain attention.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        widths: tuple[int, ...] = (32, 64),
        attended: tuple[int, ...] = (1,),
        depth: int = 1,
        heads: int = 1,
        head_channels: int = 0,
        context: int = 0,
        scale_shift: bool = False,
        new_order: bool = False,
    ) -> None:
        super().__init__()
        self.width = first = widths[0]

        def residual(inputs: int, outputs: int) -> nn.Module:
            return ResBlock(inputs, outputs, 4 * first, scale_shift=scale_shift)

        def attention(width: int) -> nn.Module:
            number = width // head_channels if head_channels else heads
            if context:
                return SpatialTransformer(width, context, number)
            return PlainAttention(width, number, new_order=new_order)

        self.time_embed = nn.Sequential(
            nn.Linear(first, 4 * first), nn.SiLU(), nn.Linear(4 * first, 4 * first)
        )
        inputs = [nn.ModuleList([nn.Conv2d(channels, first, 3, padding=1)])]
        here, skips = first, [first]
        for level, width in enumerate(widths):
            for _ in range(depth):
                layers = [residual(here, width)]
                layers += [attention(width)] if level in attended else []
                inputs.append(nn.ModuleList(layers))
                here = width
                skips.append(here)
            if level < len(widths) - 1:
                inputs.append(nn.ModuleList([Downsample(here)]))
                skips.append(here)
        self.input_blocks = nn.ModuleList(inputs)
        self.middle_block = nn.ModuleList(
            [residual(here, here), attention(here), residual(here, here)]
        )
        outputs = []
        for level, width in reversed(list(enumerate(widths))):
            for place in range(depth + 1):
                layers = [residual(here + skips.pop(), width)]
                layers += [attention(width)] if level in attended else []
                here = width
                layers += [Upsample(here)] if level and place == depth else []
                outputs.append(nn.ModuleList(layers))
        self.output_blocks = nn.ModuleList(outputs)
        self.out = nn.Sequential(
            group_norm(first), nn.SiLU(), nn.Conv2d(first, channels, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Latents ``[n, C, H, W]``, timesteps ``[n]``, context ``[n, tokens, width]``."""
        half = self.width // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half)
        angles = t[:, None].float() * frequencies
        e = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        skips = []
        for block in self.input_blocks:
            x = _run(block, x, e, context)
            skips.append(x)
        x = _run(self.middle_block, x, e, context)
        for block in self.output_blocks:
            x = _run(block, torch.cat([x, skips.pop()], dim=1), e, context)
        return self.out(x)


def _run(block: nn.ModuleList, x: Tensor, e: Tensor, context: Tensor | None) -> Tensor:
    for layer in block:
        if isinstance(layer, ResBlock):
            x = layer(x, e)
        elif isinstance(layer, SpatialTransformer):
            x = layer(x, context)
        else:
            x = layer(x)
    return x
