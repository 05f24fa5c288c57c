"""Samplers by name: a diffusers scheduler for the diffusion process of a given pipeline."""

from __future__ import annotations

import inspect
from typing import Any

from dpq_core.errors import SpecError

_CLASSES = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
}

LEARNED = ("learned", "learned_range")
"""Variance types that read the second half of the model's output channels."""


def make_scheduler(current: Any, name: str, *, learned_variance: bool) -> Any:
    """A scheduler without history that has the noise schedule of another.

    Args:
        current: scheduler of the pipeline.
        name: one of ``SCHEDULERS``; ``auto`` keeps the class of ``current``.
        learned_variance: the model predicts a variance beside the noise. DDPM uses it; for DDIM
            and DPM-Solver++ the caller leaves it out.

    Raises:
        SpecError: the pipeline's process is not one that the named scheduler can run.
    """
    import diffusers

    kind = type(current) if name == "auto" else getattr(diffusers, _CLASSES[name])
    if name != "auto" and not hasattr(current, "alphas_cumprod"):
        raise SpecError(
            f"--scheduler {name} does not fit this model: its own, {type(current).__name__}, runs "
            "another kind of process; use --scheduler auto"
        )
    known = inspect.signature(kind.__init__).parameters
    config = {key: value for key, value in current.config.items() if key in known}
    if not isinstance(current, kind) and "timestep_spacing" in known:
        # The default of DDPM and DPM-Solver++ in diffusers, and for DDPM how the official DiT code
        # spaces its steps. DDIM takes equal strides, so it keeps "leading".
        config["timestep_spacing"] = "leading" if name == "ddim" else "linspace"
    if "variance_type" in known:
        config["variance_type"] = _variance_type(kind, current, config, learned_variance)
    return kind(**config)


def _variance_type(kind: type, current: Any, config: dict[str, Any], learned: bool) -> str | None:
    """Of DDPM: learned where the model learned it. Others get the noise only, hence None."""
    if "DDPM" not in kind.__name__:
        return None
    stored = config.get("variance_type")
    if learned:
        return stored if stored in LEARNED else "learned_range"
    return "fixed_small" if stored is None or stored in LEARNED else str(stored)


def uses_variance(scheduler: Any) -> bool:
    """Whether ``step`` wants the predicted variance as well."""
    return scheduler.config.get("variance_type") in LEARNED


def name_of(scheduler: Any) -> str:
    """``ddim`` and so on; the class name where it is none of ours."""
    kind = type(scheduler).__name__
    return {v: k for k, v in _CLASSES.items()}.get(kind, kind.removesuffix("Scheduler"))
