"""CalibrationTask: the student, the batches and the losses that a domain gives to calibration.

The calibration loop (``dpq_core.calibrate.loop``) is the same for all domains. An adapter builds a
task from an artifact (the student) and the uncompressed source (the teacher).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dpq_core.artifact import DataEntry
from dpq_core.errors import AdapterError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dpq_core.artifact.single_writer import Packed
    from dpq_core.data.streamed_blocks import StreamedBlocks

Batch = Mapping[str, Any]
"""Tensors whose first axis counts samples, so that processes can take slices of it.

Everything random about a step (noise, timesteps, dropped classes) is in the batch, drawn from the
seed and the step's number: a resumed run sees the same batches, and so do two processes.
"""


@dataclass(frozen=True, kw_only=True)
class EStepStats:
    """Statistics of one E-step over the codes of the whole student.

    Attributes:
        changed: number of codes that changed.
        total: number of codes.
        dead: share of codewords that no code uses, 0..1.
        perplexity: exp of the entropy of the codewords' usage, over the number of codewords, 0..1.
        revived: dead codewords that were given a new value.
    """

    changed: int
    total: int
    dead: float = 0.0
    perplexity: float = 1.0
    revived: int = 0


class EStep(Protocol):
    """A part of the student whose codes can be chosen anew while its codewords stay fixed.

    All that a step changes must be buffers or trained parameters of the student: the loop takes a
    step back that raised the loss, and saves and restores the student through them alone.
    """

    def step(self, limit: float, progress: float) -> EStepStats:
        """Choose the codes anew.

        Args:
            limit: share of all codes that may change, those with the largest gain first.
            progress: share of the training that is done, 0..1.
        """


class CalibrationTask(ABC):
    """One student, its data and its losses.

    Attributes:
        student: a module tree. Its parameters that require gradients are trained (codebooks, pools,
            scales and small uncompressed ones); quantized weights in it are ``PQWeight`` modules.
        name: name of the loss, e.g. ``cross-entropy``.
        fingerprint: changes whenever the batches do (data, options, seed); guards ``resume``.
        data: what the batches are made of, in one line for people, e.g. ``64 windows of 512 tokens
            of text files``; the artifact says it. Empty where there is nothing to say.
        epoch: number of training batches after which the same samples come again; None where every
            step draws new ones.
        streamed: the student's blocks where their weights are read as they run; None where the
            whole student is in memory.
    """

    student: nn.Module
    name: str
    fingerprint: str = ""
    data: str = ""
    epoch: int | None = None
    streamed: StreamedBlocks | None = None

    def begin(self, steps: int) -> None:  # noqa: B027  # not every task wants to know
        """Take note of the number of end-to-end M-steps; called before anything else."""

    @abstractmethod
    def train_batch(self, step: int) -> Batch:
        """The batch of one step: a pure function of the task's seed and the step."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The student's loss on a batch: a scalar, the mean over its samples."""

    def sampled_loss(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """The loss of the student on labels that are drawn from its own predictions.

        Returns:
            The sum over all predictions, differentiable with respect to the outputs of every layer;
            None where the task has no such loss.
        """
        return None

    @abstractmethod
    def validation(self) -> Sequence[Batch]:
        """Fixed batches, all of one size, that training never sees; the best state is chosen here.

        The loop evaluates ``loss`` on them without gradients, the student in eval mode.
        """

    @abstractmethod
    def reference_loss(self) -> float:
        """Validation loss of the uncompressed model: what a perfect calibration would reach."""

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups for the optimizer; one group with all parameters by default.

        Each has ``params`` and ``lr_scale``, and may have its own ``betas`` and ``eps``.
        """
        trained = [p for p in self.student.parameters() if p.requires_grad]
        return [{"params": trained, "lr_scale": 1.0}]

    def teacher(self) -> nn.Module | None:
        """The uncompressed module tree, with the student's paths; None where there is none."""
        return None

    def blocks(self) -> Sequence[str]:
        """Paths of the blocks that run one after the other; empty for no block-wise training."""
        return ()

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Run student or teacher on a batch, for hooks that look at activations."""
        raise AdapterError(f"{type(self).__name__} has no forward pass of its own")

    def tensor_name(self, path: str) -> str:
        """Name in the artifact of the weight of the student's module at ``path``."""
        return f"{path}.weight"

    def parameter_name(self, name: str) -> str:
        """Name in the artifact of a dense parameter of the student; follows ``tensor_name``."""
        path, _, leaf = name.rpartition(".")
        return self.tensor_name(path).removesuffix("weight") + leaf if path else name

    def esteps(self) -> Sequence[EStep]:
        """The task's own E-steps; quantized weights of module trees get theirs from the loop."""
        return ()

    def packed(self) -> Packed:
        """The student's present state, coded for one file; for a ``FileAdapter``."""
        raise AdapterError(f"{type(self).__name__} has no single file to write")


def data_entries(use: str, task: CalibrationTask) -> list[DataEntry]:
    """The manifest's entries of the data that a job read; none where the task does not say it.

    Args:
        use: the job, one of ``DATA_USES``.
        task: the task whose batches the job read.
    """
    return [DataEntry.of(use, task.data, task.fingerprint)] if task.data else []
