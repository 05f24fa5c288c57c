"""Noise, and what a denoiser is trained to say of it, against the definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from dpq_diffusion.calibration.processes import Diffusion, Flow, noise_process


class TestDiffusion:
    betas = torch.linspace(0.01, 0.3, 6, dtype=torch.float64)

    def restated(self, output, clean, noise, level, prediction):
        """One sample's loss by Bayes' rule, in float64; no closed form of the posterior."""
        bar = torch.cumprod(1 - self.betas, 0)
        a, b = bar[level].sqrt(), (1 - bar[level]).sqrt()
        noisy = a * clean + b * noise
        told, place = output.chunk(2)
        if prediction == "epsilon":
            target, guess = noise, (noisy - b * told) / a
        elif prediction == "v_prediction":
            target, guess = a * noise - b * clean, a * noisy - b * told
        else:
            target, guess = clean, told
        error = (told - target).square().mean()

        def posterior(start, t):
            before = bar[t - 1]
            step = (1 - self.betas[t]) / self.betas[t]
            precision = 1 / (1 - before) + step
            mean = before.sqrt() / (1 - before) * start
            mean = mean + (1 - self.betas[t]).sqrt() / self.betas[t] * noisy
            return mean / precision, 1 / precision

        low = posterior(clean, max(level, 1))[1].log()
        log_variance = (place + 1) / 2 * self.betas[level].log() + (1 - place) / 2 * low
        deviation = (log_variance / 2).exp()
        if level:
            truth = Normal(posterior(clean, level)[0], (low / 2).exp())
            bound = kl_divergence(truth, Normal(posterior(guess, level)[0], deviation))
        else:  # the mean at t = 0 is the guess itself
            model = Normal(guess, deviation)
            upper = torch.where(clean > 0.999, 1.0, model.cdf(clean + 1 / 255))
            lower = torch.where(clean < -0.999, 0.0, model.cdf(clean - 1 / 255))
            bound = -(upper - lower).clamp(min=1e-12).log()
        return error + bound.mean() / math.log(2)

    @pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
    def test_loss_is_that_of_the_definition(self, prediction):
        torch.manual_seed(0)
        process = Diffusion(torch.cumprod(1 - self.betas, 0), prediction)
        levels = torch.arange(6)
        clean = torch.randn(6, 2, 3, 3, dtype=torch.float64).clamp(-1, 1)
        noise = torch.randn_like(clean)
        output = torch.cat([torch.randn_like(clean), torch.rand_like(clean) * 2 - 1], 1)
        noisy = process.noised(clean, noise, levels)
        batch = {"clean": clean, "noise": noise, "noisy": noisy, "level": levels}
        parts = [self.restated(output[i], clean[i], noise[i], i, prediction) for i in range(6)]
        for i in range(6):
            one = {name: value[i : i + 1] for name, value in batch.items()}
            torch.testing.assert_close(process.loss(output[i : i + 1], one), parts[i])
        torch.testing.assert_close(process.loss(output, batch), sum(parts) / 6)

    def test_the_bound_trains_the_variance_only(self):
        torch.manual_seed(0)
        process = Diffusion(torch.cumprod(1 - self.betas, 0), "epsilon")
        clean, noise = torch.randn(2, 4, 1, 3, 3)
        levels = torch.tensor([0, 1, 3, 5])
        noisy = process.noised(clean, noise, levels)
        batch = {"clean": clean, "noise": noise, "noisy": noisy, "level": levels}
        output = torch.randn(4, 2, 3, 3, requires_grad=True)
        (gradient,) = torch.autograd.grad(process.loss(output, batch), output)
        torch.testing.assert_close(gradient[:, :1], 2 * (output[:, :1] - noise) / noise.numel())
        assert gradient[:, 1:].abs().min() > 0
        assert gradient.isfinite().all()

    def test_noise_is_added_as_by_the_scheduler(self):
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler()
        clean, noise = torch.randn(2, 5, 1, 4, 4)
        levels = torch.tensor([0, 1, 500, 998, 999])
        expected = scheduler.add_noise(clean, noise, levels)
        torch.testing.assert_close(noise_process(scheduler).noised(clean, noise, levels), expected)

    def test_levels_are_uniform(self):
        process = Diffusion(torch.linspace(0.9999, 0.0001, 1000), "epsilon")
        levels = process.levels(20_000, torch.Generator().manual_seed(0))
        counts = torch.bincount(levels // 100, minlength=10)
        assert len(counts) == 10
        assert (counts - 2000).abs().max() < 200


def test_flow_is_the_straight_line():
    from diffusers import FlowMatchEulerDiscreteScheduler

    process = noise_process(FlowMatchEulerDiscreteScheduler())
    assert isinstance(process, Flow)
    clean, noise = torch.randn(2, 3, 2, 4)
    levels = torch.tensor([0.0, 0.25, 1.0])
    noisy = process.noised(clean, noise, levels)
    torch.testing.assert_close(noisy[0], clean[0])
    torch.testing.assert_close(noisy[1], 0.75 * clean[1] + 0.25 * noise[1])
    torch.testing.assert_close(noisy[2], noise[2])
    assert process.timesteps(levels).tolist() == [0, 250, 1000]
    batch = {"clean": clean, "noise": noise, "noisy": noisy, "level": levels}
    assert process.loss(noise - clean, batch) == 0
    assert process.loss(noise - clean + 1, batch) == pytest.approx(1)
