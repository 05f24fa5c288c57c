"""LoopState and StateFolder: the saved state of an unfinished calibration."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpq_core.artifact.files import replacing
from dpq_core.calibrate.report import Assigned, Validated
from dpq_core.errors import START_OVER, ArtifactError

STATE_NAME = "state.safetensors"
STATE_VERSION = "1"
"""Version of the file's layout; a state of another version is refused."""

Tensors = dict[str, Tensor]


@dataclass
class LoopState:
    """The state of a calibration between two M-steps.

    Attributes:
        phase: index of the phase.
        step: number of finished M-steps of the phase.
        done: number of finished M-steps of all phases.
        before: validation loss before anything was trained.
        reference: validation loss of the uncompressed model.
        overall: the best state by validation loss, as ``layers.snapshot`` takes it.
        overall_loss: its validation loss.
        best: the best state of the phase by the phase's own objective; empty before its first.
        best_loss: its loss.
        waited: validations of the phase since the best one.
        validations: all validations so far.
        esteps: all E-steps so far.
    """

    phase: int = 0
    step: int = 0
    done: int = 0
    before: float = math.nan
    reference: float = math.nan
    overall: Tensors = field(default_factory=dict)
    overall_loss: float = math.inf
    best: Tensors = field(default_factory=dict)
    best_loss: float = math.inf
    waited: int = 0
    validations: list[Validated] = field(default_factory=list)
    esteps: list[Assigned] = field(default_factory=list)

    def next_phase(self) -> None:
        """Begin the phase after this one."""
        self.phase, self.step, self.waited = self.phase + 1, 0, 0
        self.best, self.best_loss = {}, math.inf


class StateFolder:
    """The folder ``<out>.calibration`` with the last saved state of one run.

    Attributes:
        path: path of the folder.
        identity: hash of artifact, options and settings; another run's state is refused.
    """

    def __init__(self, path: Path, identity: str) -> None:
        """Name the folder; nothing is read or written yet."""
        self.path = path
        self.identity = identity

    def save(self, state: LoopState, extra: Mapping[str, Tensors]) -> None:
        """Replace the saved state.

        Args:
            state: the state of the loop.
            extra: prefix -> tensors: the student, the optimizer and the E-steps.

        Raises:
            ArtifactError: the file cannot be written.
        """
        groups = {**extra, "overall": state.overall, "best": state.best}
        tensors = {
            f"{prefix}/{name}": value.detach().cpu().contiguous()
            for prefix, group in groups.items()
            for name, value in group.items()
        }
        plain = {
            f.name: getattr(state, f.name)
            for f in dataclasses.fields(state)
            if f.name not in ("overall", "best")
        }
        for name in ("validations", "esteps"):
            plain[name] = [dataclasses.asdict(item) for item in plain[name]]
        metadata = {"version": STATE_VERSION, "identity": self.identity, "state": json.dumps(plain)}
        file = self.path / STATE_NAME
        try:
            with replacing(file) as partial:
                save_file(_without_shared_memory(tensors), partial, metadata)
        except SafetensorError as error:
            raise ArtifactError(f"{file}: cannot write the calibration ({error})") from None

    def load(self, device: torch.device) -> tuple[LoopState, dict[str, Tensors]] | None:
        """The saved state and the tensors of ``save``'s ``extra``; None where nothing is saved.

        Raises:
            ArtifactError: the state is damaged, or another run's.
        """
        file = self.path / STATE_NAME
        if not file.is_file():
            return None
        groups: dict[str, Tensors] = {"overall": {}, "best": {}}
        try:
            with safe_open(file, framework="pt") as handle:
                metadata = handle.metadata() or {}
                self._check(file, metadata)
                for key in handle.keys():  # noqa: SIM118 - not a mapping
                    prefix, _, name = key.partition("/")
                    groups.setdefault(prefix, {})[name] = handle.get_tensor(key).to(device)
            plain: dict[str, Any] = json.loads(metadata["state"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ArtifactError(f"{file}: not a readable state ({error})", START_OVER) from None
        plain["validations"] = [Validated(**item) for item in plain["validations"]]
        plain["esteps"] = [Assigned(**item) for item in plain["esteps"]]
        state = LoopState(**plain, overall=groups.pop("overall"), best=groups.pop("best"))
        return state, groups

    def _check(self, file: Path, metadata: Mapping[str, str]) -> None:
        if metadata.get("version") != STATE_VERSION or metadata.get("identity") != self.identity:
            raise ArtifactError(
                f"{file}: is the state of another run (another artifact, data, setting or version "
                "of dpq); repeat that run to resume it, or start over",
                START_OVER,
            )

    def exists(self) -> bool:
        """Whether there is a saved state to resume from."""
        return (self.path / STATE_NAME).is_file()

    def discard(self) -> None:
        """Delete the folder, when the run is over or starts over."""
        shutil.rmtree(self.path, ignore_errors=True)


def _without_shared_memory(tensors: Tensors) -> Tensors:
    """The tensors, cloned where they share memory with another, which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        result[name] = value.clone() if place in seen else value
        seen.add(place)
    return result
