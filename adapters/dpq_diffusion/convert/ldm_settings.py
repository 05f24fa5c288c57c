"""Settings of a CompVis checkpoint that are not in its tensors: from a YAML, or as published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpq_core.errors import SourceError

_MAX_BYTES = 1 << 20

_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "squaredcos_cap_v2"}
"""Names of beta schedules: in CompVis (whose "linear" is linear in the root) -> in diffusers."""

_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def yaml_beside(checkpoint: Path) -> Path | None:
    """The YAML config beside a checkpoint: of its name, called ``config``, or the only one."""
    folder = checkpoint.parent
    for name in (checkpoint.stem, "config"):
        for suffix in (".yaml", ".yml"):
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    configs = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    lone = len(configs) == 1 and len(list(folder.glob(f"*{checkpoint.suffix}"))) == 1
    return configs[0] if lone else None


@dataclass(frozen=True, kw_only=True)
class LdmSettings:
    """The ``model.params`` of a CompVis YAML, all of them optional.

    Attributes:
        where: the file, for messages.
        params: its content; empty without a file.
    """

    where: str = "no YAML"
    params: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None) -> LdmSettings:
        """Read a YAML file as plain data.

        Raises:
            SourceError: it is not YAML, or has no ``model.params``.
        """
        if path is None:
            return cls()
        import yaml  # type: ignore[import-untyped]

        try:
            if path.stat().st_size > _MAX_BYTES:
                raise SourceError(f"{path}: larger than {_MAX_BYTES} bytes, so not a config")
            content = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:120]
            raise SourceError(f"{path}: not readable YAML ({reason})") from None
        model = content.get("model") if isinstance(content, Mapping) else None
        params = model.get("params") if isinstance(model, Mapping) else None
        if not isinstance(params, Mapping):
            raise SourceError(
                f"{path}: no model.params, so not the config of an LDM; move it away from the "
                "checkpoint, or give the right one"
            )
        return cls(where=str(path), params=params)

    def number(self, *keys: str) -> float | None:
        """The finite number at a path of keys; None where there is none.

        Raises:
            SourceError: there is something else.
        """
        value = self._at(*keys)
        if value is None:
            return None
        if isinstance(value, str):  # YAML 1.1 takes 1e-4 for a text
            try:
                value = float(value)
            except ValueError:
                value = math.nan
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise SourceError(f"{self.where}: {'.'.join(keys)} is not a number")
        return value

    def count(self, *keys: str) -> int | None:
        """The positive whole number at a path of keys; None where there is none, or -1.

        Raises:
            SourceError: there is something else.
        """
        value = self.number(*keys)
        if value is None or value == -1:  # CompVis writes -1 for "not used"
            return None
        if value < 1 or value != int(value):
            raise SourceError(f"{self.where}: {'.'.join(keys)} is not a positive whole number")
        return int(value)

    def flag(self, *keys: str) -> bool:
        """Whether there is a true value at a path of keys."""
        return self._at(*keys) is True

    def _choice(self, key: str, names: Mapping[str, str], default: str) -> str:
        value = self._at(key)
        if value is None:
            return names[default]
        if value not in names:
            raise SourceError(f"{self.where}: {key} is {value!r}, not one of {', '.join(names)}")
        return names[value]

    def _at(self, *keys: str) -> Any:
        value: Any = self.params
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def scheduler(self, tensors: Mapping[str, Tensor], *, published: tuple[float, float]) -> Any:
        """The config of a ``DDIMScheduler`` that does what CompVis' DDIM sampler does.

        Args:
            tensors: the checkpoint's tensors, in which trainers store the schedule.
            published: first and last beta where nobody says.

        Raises:
            SourceError: a value is not valid.
        """
        config: dict[str, Any] = {
            "_class_name": "DDIMScheduler",
            "beta_schedule": self._choice("beta_schedule", _SCHEDULES, "linear"),
            "clip_sample": False,
            "num_train_timesteps": self.count("timesteps") or 1000,
            "prediction_type": self._choice("parameterization", _PREDICTIONS, "eps"),
            "set_alpha_to_one": False,
            "steps_offset": 1,
        }
        first, last = self.number("linear_start"), self.number("linear_end")
        betas = tensors.get("betas")
        if first is None and last is None and betas is not None and betas.ndim == 1:
            return config | _stored(betas.double())
        if self.params:  # the defaults of CompVis' classes
            published = (1e-4, 2e-2)
        start, end = first or published[0], last or published[1]
        if not 0 < start <= end < 1:
            raise SourceError(f"{self.where}: linear_start and linear_end are not 0 < a <= b < 1")
        return config | {"beta_start": start, "beta_end": end}


def _stored(betas: Tensor) -> dict[str, Any]:
    """The scheduler config of stored betas ``[T]``: both ends where these determine the rest."""
    count, (first, last) = len(betas), (betas[0].item(), betas[-1].item())
    root = torch.linspace(first**0.5, last**0.5, count, dtype=torch.float64) ** 2
    straight = torch.linspace(first, last, count, dtype=torch.float64)
    for name, values in (("scaled_linear", root), ("linear", straight)):
        if torch.allclose(betas, values, rtol=1e-4):
            ends = {"beta_start": first, "beta_end": last}
            return {"num_train_timesteps": count, "beta_schedule": name, **ends}
    return {"num_train_timesteps": count, "trained_betas": betas.tolist()}
