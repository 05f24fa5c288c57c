"""The transformer of ``builtin:tiny-dit`` and its diffusion process with the training loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel
    from diffusers.models.attention_processor import Attention

NUM_CLASSES = 10
NULL_CLASS = NUM_CLASSES
"""Label of "no class" for classifier-free guidance: the extra row of the class table."""

TIMESTEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02


def build_model(layers: int) -> DiTTransformer2DModel:
    """Builds the untrained model; the caller seeds torch.

    All blocks share one timestep MLP and class table, of which diffusers makes a copy per block.
    The initial weights follow DiT: Xavier for linear layers, zeros for the modulations and the
    output (adaLN-zero), normal with standard deviation 0.02 for the embeddings.

    Args:
        layers: Number of transformer blocks.

    Returns:
        The model, in evaluation mode: it has no dropout but that of labels, which is ours.
    """
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=1,
        out_channels=2,  # predicted velocity, and where the variance lies between its bounds
        num_layers=layers,
        sample_size=28,
        patch_size=4,
        num_embeds_ada_norm=NUM_CLASSES,
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    projection = model.pos_embed.proj
    torch.nn.init.xavier_uniform_(projection.weight.data.flatten(1))
    torch.nn.init.zeros_(projection.bias)
    embedder = model.transformer_blocks[0].norm1.emb
    torch.nn.init.normal_(embedder.class_embedder.embedding_table.weight, std=0.02)
    torch.nn.init.normal_(embedder.timestep_embedder.linear_1.weight, std=0.02)
    torch.nn.init.normal_(embedder.timestep_embedder.linear_2.weight, std=0.02)
    for block in model.transformer_blocks:
        torch.nn.init.zeros_(block.norm1.linear.weight)
        block.norm1.emb = embedder
        block.attn1.set_processor(PlainAttention())
    torch.nn.init.zeros_(model.proj_out_1.weight)
    torch.nn.init.zeros_(model.proj_out_2.weight)
    return model.eval()


class Diffusion:
    """The DDPM process with linear betas, and its training loss.

    Attributes:
        signal: sqrt of cumulated alphas, float32 [TIMESTEPS].
        noise: sqrt of one minus cumulated alphas, float32 [TIMESTEPS].
    """

    def __init__(self) -> None:
        betas = torch.linspace(BETA_START, BETA_END, TIMESTEPS, dtype=torch.float64)
        kept = torch.cumprod(1.0 - betas, 0)
        kept_before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        posterior = betas * (1.0 - kept_before) / (1.0 - kept)
        posterior[0] = posterior[1]  # zero at the first step, where it is never used as such
        # The mean of q(x_{t-1} | x_t, x_0) moves by this much per unit of error in the velocity.
        error_scale = betas * (kept_before / (1.0 - kept)).sqrt()
        self.signal = kept.sqrt().float()
        self.noise = (1.0 - kept).sqrt().float()
        self.min_log_variance = posterior.log().float()
        self.max_log_variance = betas.log().float()
        self.error_scale = error_scale.float()

    def losses(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        steps: torch.Tensor,
        noise: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both terms of the hybrid loss of improved DDPM (Nichol and Dhariwal 2021, eq. 16).

        The first term is that of the velocity (Salimans and Ho 2022): `signal` times noise minus
        `noise` times image. A model that predicted the noise was, under strong noise (from step
        800), after 450,000 images still worse than the mean image of a class.

        Args:
            model: Predicts velocity and variance from noisy images, steps and labels.
            images: Clean images in [-1, 1], shape (N, 1, H, W).
            labels: Class labels, NULL_CLASS where dropped, shape (N,).
            steps: Diffusion steps, shape (N,).
            noise: Standard normal, shape of the images.

        Returns:
            Mean squared error of the velocity, and the variational bound's term of a uniformly
            drawn step in bits per pixel. Their sum is the hybrid loss: over 1000 steps, the bound
            is 1000 times the latter, and its weight is 1/1000.
        """
        at = steps[:, None, None, None]
        noisy = self.signal[at] * images + self.noise[at] * noise
        output = model(noisy, timestep=steps, class_labels=labels).sample.float()
        predicted, variance = output.chunk(2, dim=1)
        error = predicted - (self.signal[at] * noise - self.noise[at] * images)
        low, high = self.min_log_variance[at], self.max_log_variance[at]
        log_variance = low + (high - low) * (variance + 1.0) / 2.0
        # The bound trains the variance only, never the mean (section 3.1 of that paper).
        offset = self.error_scale[at] * error.detach()
        divergence = 0.5 * (
            log_variance
            - low
            - 1.0
            + torch.exp(low - log_variance)
            + offset.square() * torch.exp(-log_variance)
        )
        likelihood = _discrete_log_likelihood(images, images - offset, 0.5 * log_variance)
        bound = torch.where(at == 0, -likelihood, divergence) / math.log(2.0)
        return error.square().mean(), bound.mean()


def _discrete_log_likelihood(
    images: torch.Tensor, means: torch.Tensor, log_scales: torch.Tensor
) -> torch.Tensor:
    """Log probability of 8-bit pixel values under a normal distribution, shape of the images."""
    above = _normal_cdf((images - means + 1.0 / 255.0) * torch.exp(-log_scales))
    below = _normal_cdf((images - means - 1.0 / 255.0) * torch.exp(-log_scales))
    above = torch.where(images > 0.999, torch.ones_like(above), above)
    below = torch.where(images < -0.999, torch.zeros_like(below), below)
    return torch.log((above - below).clamp(min=1e-12))


def _normal_cdf(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


class PlainAttention:
    """Self-attention as matrix products, for training.

    The fused kernel's backward pass takes longer than everything else on a CPU at 49 tokens.
    """

    def __call__(
        self, attention: Attention, hidden_states: torch.Tensor, **_: object
    ) -> torch.Tensor:
        """Attends within each sequence of hidden states, shape (N, tokens, width)."""
        count, tokens, width = hidden_states.shape
        shape = (count, tokens, attention.heads, width // attention.heads)
        query = attention.to_q(hidden_states).view(shape).transpose(1, 2)
        key = attention.to_k(hidden_states).view(shape).transpose(1, 2)
        value = attention.to_v(hidden_states).view(shape).transpose(1, 2)
        scores = (query * attention.scale) @ key.transpose(2, 3)
        mixed = scores.softmax(dim=-1).to(value.dtype) @ value
        output: torch.Tensor = attention.to_out[0](mixed.transpose(1, 2).flatten(2))
        return output
