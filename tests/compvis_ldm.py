"""A latent diffusion model with CompVis' tensor names, restated in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from compvis_unet import UNet
from torch import Tensor, nn


def norm(channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        h = self.conv2(nn.functional.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """One head over all pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        h = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1) @ v
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Level(nn.Module):
    """Residual blocks of one resolution, and what leads to the next."""

    def __init__(self, widths: list[int], *, attention: bool, resample: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(map(Residual, widths, widths[1:]))
        self.attn = nn.ModuleList(Attention(w) for w in widths[1:] if attention)
        if resample:
            stride = 2 if resample == "downsample" else 1
            conv = nn.Conv2d(widths[-1], widths[-1], 3, stride=stride, padding=stride % 2)
            setattr(self, resample, nn.ModuleDict({"conv": conv}))

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        if hasattr(self, "downsample"):
            x = self.downsample["conv"](nn.functional.pad(x, (0, 1, 0, 1)))
        if hasattr(self, "upsample"):
            x = self.upsample["conv"](nn.functional.interpolate(x, scale_factor=2.0))
        return x


class Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1, self.attn_1 = Residual(width, width), Attention(width)
        self.block_2 = Residual(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(
        self, widths: tuple[int, ...], outputs: int, attended: tuple[int, ...], depth: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down, here, last = nn.ModuleList(), widths[0], len(widths) - 1
        for number, width in enumerate(widths):
            resample = "downsample" if number < last else ""
            attention = number in attended
            blocks = [here, *[width] * depth]
            self.down.append(Level(blocks, attention=attention, resample=resample))
            here = width
        self.mid = Middle(here)
        self.norm_out, self.conv_out = norm(here), nn.Conv2d(here, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(nn.functional.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Level 0 is the finest, so it comes last."""

    def __init__(
        self, widths: tuple[int, ...], inputs: int, attended: tuple[int, ...], depth: int
    ) -> None:
        super().__init__()
        here = widths[-1]
        self.conv_in = nn.Conv2d(inputs, here, 3, padding=1)
        self.mid, levels = Middle(here), []
        for number, width in reversed(list(enumerate(widths))):
            resample = "upsample" if number else ""
            attention = number in attended
            blocks = [here, *[width] * (depth + 1)]
            levels.insert(0, Level(blocks, attention=attention, resample=resample))
            here = width
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = norm(here), nn.Conv2d(here, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(nn.functional.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    """Quantizing where there are ``words``, else with a Gaussian of means and log-variances."""

    def __init__(
        self,
        *,
        widths: tuple[int, ...] = (32, 64),
        latents: int = 3,
        words: int = 0,
        attended: tuple[int, ...] = (),
        depth: int = 1,
    ) -> None:
        super().__init__()
        double = latents if words else 2 * latents
        self.encoder = Encoder(widths, double, attended, depth)
        self.decoder = Decoder(widths, latents, attended, depth)
        self.quant_conv = nn.Conv2d(double, double, 1)
        self.post_quant_conv = nn.Conv2d(latents, latents, 1)
        if words:
            self.quantize = nn.ModuleDict({"embedding": nn.Embedding(words, latents)})
        self.loss = nn.ModuleDict({"discriminator": nn.Conv2d(3, 8, 3)})  # for training

    def encode(self, x: Tensor) -> Tensor:
        """Means, or what is quantized when it is decoded."""
        h = self.quant_conv(self.encoder(x))
        return h if hasattr(self, "quantize") else h.chunk(2, dim=1)[0]

    def decode(self, z: Tensor) -> Tensor:
        if hasattr(self, "quantize"):
            table = self.quantize["embedding"].weight
            flat = z.permute(0, 2, 3, 1)
            z = table[torch.cdist(flat.reshape(-1, z.shape[1]), table).argmin(1)]
            z = z.reshape(flat.shape).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(z))


class TextAttention(nn.Module):
    def __init__(self, width: int, heads: int, head: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (
            nn.Linear(width, heads * head, bias=False) for _ in range(3)
        )
        self.to_out = nn.Linear(heads * head, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        parts = (part(x) for part in (self.to_q, self.to_k, self.to_v))
        q, k, v = (part.reshape(n, tokens, self.heads, -1).transpose(1, 2) for part in parts)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(1, 2).reshape(n, tokens, -1))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.net = nn.Sequential(inner, nn.Dropout(0), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TextTransformer(nn.Module):
    """Pre-norm layers: attention and feed-forward in turn, each beside its norm."""

    def __init__(self, *, words: int, width: int, depth: int, tokens: int, head: int) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(words, width)
        self.pos_emb = nn.ModuleDict({"emb": nn.Embedding(tokens, width)})
        blocks: list[Callable[[], nn.Module]] = [
            lambda: TextAttention(width, 8, head),
            lambda: FeedForward(width),
        ]
        layers = [nn.ModuleList([nn.LayerNorm(width), b()]) for _ in range(depth) for b in blocks]
        self.attn_layers = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.norm = nn.LayerNorm(width)
        self.to_logits = nn.Linear(width, words)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_emb(tokens) + self.pos_emb["emb"].weight[: tokens.shape[1]]
        for before, block in self.attn_layers["layers"]:
            x = x + block(before(x))
        return self.norm(x)


class LatentDiffusion(nn.Module):
    """All stages under their names, with the buffers that trainers store."""

    def __init__(
        self, unet: UNet, first: Autoencoder, condition: nn.Module | None, betas: Tensor
    ) -> None:
        super().__init__()
        self.register_buffer("betas", betas)
        self.register_buffer("alphas_cumprod", (1 - betas).cumprod(0))
        self.model = nn.ModuleDict({"diffusion_model": unet})
        self.first_stage_model = first
        if condition is not None:
            self.cond_stage_model = condition

    @torch.no_grad()
    def ddim(self, x: Tensor, steps: int, context: Tensor | None) -> Tensor:
        """Noise ``[n, C, H, W]`` -> latents, without noise on the way; of the ``eps`` model."""
        unet, count = self.model["diffusion_model"], len(self.betas)
        times = [step * (count // steps) + 1 for step in range(steps)]
        for place in reversed(range(steps)):
            now = self.alphas_cumprod[times[place]]
            before = self.alphas_cumprod[times[place - 1] if place else 0]
            noise = unet(x, torch.full((len(x),), times[place]), context)
            clean = (x - (1 - now).sqrt() * noise) / now.sqrt()
            x = before.sqrt() * clean + (1 - before).sqrt() * noise
        return x


def randomized(model: nn.Module) -> nn.Module:
    """With weights large enough that every layer shows in the output; the same in every run."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        noise = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
        centre = 1 if "norm" in name and name.endswith("weight") else 0
        parameter.data = centre + noise
    return model.eval()
