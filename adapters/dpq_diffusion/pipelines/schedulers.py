"""Schedulers by name: those of diffusers, with the noise schedule of a given pipeline."""

from __future__ import annotations

import inspect
from typing import Any

from dpq_core.errors import Hint, SpecError

_CLASSES = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
}

LEARNED = ("learned", "learned_range")
"""Variance types that read the second half of the model's output channels."""


def make_scheduler(current: Any, name: str, *, learned_variance: bool) -> Any:
    """A new scheduler of a named kind with the noise schedule of a pipeline's own.

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
            f"does not fit this model: its own, {type(current).__name__}, runs another kind of "
            "process",
            Hint.of("use {}", scheduler="auto"),
            option="scheduler",
            value=name,
        )
    parameters = inspect.signature(kind.__init__).parameters
    config = {key: value for key, value in current.config.items() if key in parameters}
    if not isinstance(current, kind) and "timestep_spacing" in parameters:
        # The default of DDPM and DPM-Solver++ in diffusers, and for DDPM how the official DiT code
        # spaces its steps. DDIM takes equal strides, so it keeps "leading".
        config["timestep_spacing"] = "leading" if name == "ddim" else "linspace"
    if "variance_type" in parameters:
        config["variance_type"] = _variance_type(kind, current, config, learned_variance)
    return kind(**config)


def _variance_type(kind: type, current: Any, config: dict[str, Any], learned: bool) -> str | None:
    """The variance type of a DDPM scheduler; None for the others, which get the noise only."""
    if "DDPM" not in kind.__name__:
        return None
    stored = config.get("variance_type")
    if learned:
        return stored if stored in LEARNED else "learned_range"
    return "fixed_small" if stored is None or stored in LEARNED else str(stored)


def uses_variance(scheduler: Any) -> bool:
    """Whether the scheduler's ``step`` takes the predicted variance as well as the noise."""
    return scheduler.config.get("variance_type") in LEARNED


def scheduler_name(scheduler: Any) -> str:
    """The name of a scheduler's kind, such as ``ddim``; else the name of its class."""
    kind = type(scheduler).__name__
    return {v: k for k, v in _CLASSES.items()}.get(kind, kind.removesuffix("Scheduler"))
