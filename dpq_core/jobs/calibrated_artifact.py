"""CalibratedArtifact: an artifact, folder or file, as calibration reads and writes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

from dpq_core.artifact import Artifact, ArtifactFile, single_writer
from dpq_core.artifact.stored import StoredModel
from dpq_core.calibrate.layers import quantized_layers
from dpq_core.data.task import CalibrationTask, data_entries
from dpq_core.errors import AdapterError
from dpq_core.jobs import rewrite
from dpq_core.jobs.hidden_match import aligned
from dpq_core.jobs.rewrite import Replacement
from dpq_core.plugin.adapter import Adapter, FileAdapter, TensorAdapter, lacks
from dpq_core.run import Run
from dpq_core.tensor.checkpoint import Checkpoint


class CalibratedArtifact(ABC):
    """An artifact before and after its calibration.

    Attributes:
        artifact: the artifact before its calibration.
    """

    artifact: StoredModel

    @abstractmethod
    def check_output(self, out: Path, *, overwrite: bool, resume: bool) -> None:
        """Refuse an output that is in the way, before any work is done.

        Raises:
            ArtifactError: ``out`` exists and is not to be replaced.
        """

    def open_baseline(self, source: str) -> None:  # noqa: B027  # a file has no weights by name
        """Open the uncompressed source, where the original weights are needed.

        Raises:
            SourceError: the source cannot be opened.
        """

    def originals(self) -> Checkpoint | None:
        """The original weights, with hidden units in the student's order; the targets of codes.

        None where the student has no named weights.
        """
        return None

    def dtypes(self, task: CalibrationTask) -> dict[str, torch.dtype]:
        """The stored dtypes of the student's dense parameters, by name in the student."""
        return {}

    @abstractmethod
    def write(self, out: Path, task: CalibrationTask, *, overwrite: bool, run: Run) -> None:
        """Write the student; ``out`` appears complete or not at all.

        Raises:
            AdapterError: the task trained a tensor that the artifact does not have.
            ArtifactError: the output cannot be written.
        """


class CalibratedFile(CalibratedArtifact):
    """A ``.dpq`` file, which the task itself codes again."""

    def __init__(self, artifact: ArtifactFile) -> None:
        self.artifact = artifact

    def check_output(self, out: Path, *, overwrite: bool, resume: bool) -> None:
        """Refuse an output that is in the way; there is no half-written file to resume."""
        single_writer.check_output(out, overwrite=overwrite)

    def write(self, out: Path, task: CalibrationTask, *, overwrite: bool, run: Run) -> None:
        """Write the file that the task codes."""
        manifest, contents = single_writer.complete(task.packed())
        single_writer.write(out, manifest, contents, overwrite=overwrite)


class CalibratedFolder(CalibratedArtifact):
    """A folder of tensors, which is written again with the trained tensors replaced."""

    def __init__(self, artifact: Artifact, adapter: TensorAdapter[Any]) -> None:
        self.artifact: Artifact = artifact
        self._adapter = adapter
        self._baseline: Checkpoint | None = None

    def check_output(self, out: Path, *, overwrite: bool, resume: bool) -> None:
        """Refuse an output that is in the way."""
        rewrite.check_output(out, overwrite=overwrite, resume=resume)

    def open_baseline(self, source: str) -> None:
        """Open the uncompressed source."""
        self._baseline = self._adapter.open(source)

    def originals(self) -> Checkpoint | None:
        """The original weights, with hidden units in the order of the artifact."""
        if self._baseline is None:
            return None
        return aligned(self._adapter, self._baseline, self.artifact)

    def dtypes(self, task: CalibrationTask) -> dict[str, torch.dtype]:
        """The stored dtypes of dense parameters, by name in the student."""
        kept = {e.name: e.torch_dtype for e in self.artifact.manifest.tensors if e.spec is None}
        names = {name: task.parameter_name(name) for name, _ in task.student.named_parameters()}
        return {name: kept[stored] for name, stored in names.items() if stored in kept}

    def write(self, out: Path, task: CalibrationTask, *, overwrite: bool, run: Run) -> None:
        """Write the folder again with the trained tensors replaced."""
        replaced = _trained(task)
        unknown = sorted(set(replaced) - set(self.artifact.names()))
        if unknown:
            raise AdapterError(
                f"{type(task).__name__}: {unknown[0]!r} was trained, but the artifact has no such "
                "tensor; see CalibrationTask.tensor_name"
            )
        rewrite.rewrite(
            self._adapter,
            self.artifact,
            out,
            replaced.get,
            baseline=self._baseline,
            data=data_entries("calibrate", task),
            overwrite=overwrite,
            run=run,
        )


def open_calibrated(adapter: Adapter, path: Path) -> CalibratedArtifact:
    """Open the artifact at ``path``, a folder or a file as the adapter writes it.

    Raises:
        ArtifactError: the artifact is missing, half-written, damaged, hostile or another adapter's.
    """
    if isinstance(adapter, FileAdapter):
        return CalibratedFile(ArtifactFile.open(path, adapter=adapter.name))
    if isinstance(adapter, TensorAdapter):
        return CalibratedFolder(Artifact.open(path, adapter=adapter.name), adapter)
    raise lacks(adapter, "compress")


def _trained(task: CalibrationTask) -> dict[str, Replacement]:
    """The new values of all trained tensors, by name in the artifact."""
    layers = quantized_layers(task)
    replaced: dict[str, Replacement] = {layer.name: layer.weight.pq() for layer in layers}
    quantized = {id(p) for layer in layers for p in layer.weight.parameters()}
    for name, parameter in task.student.named_parameters():
        if parameter.requires_grad and id(parameter) not in quantized:
            replaced[task.parameter_name(name)] = parameter.detach()
    return replaced
