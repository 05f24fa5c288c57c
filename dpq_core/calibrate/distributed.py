"""Workers: the processes that share the batches of one run (torchrun, ``accelerate launch``).

Each holds the whole student and makes the same updates: batches are cut along their samples, and
gradients and statistics are summed. A single process is the case of world size 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor
from torch import distributed as dist

from dpq_core.data.task import Batch
from dpq_core.errors import AdapterError, SpecError

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Environment variables in which launchers (torch's and MPI's) give the number of processes."""


class Workers:
    """This process among the processes of a run.

    Attributes:
        rank: 0 .. world - 1; only rank 0 writes files.
        world: number of processes.
    """

    def __init__(self) -> None:
        """Read what a launcher has set up; without one this is the only process."""
        ready = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if ready else 0
        self.world = dist.get_world_size() if ready else 1

    def slice(self, batch: Batch) -> tuple[Batch, float]:
        """This process's samples of a batch, and their share of all.

        Raises:
            SpecError: there are fewer samples than processes.
            AdapterError: the tensors of the batch have different first axes.
        """
        if self.world == 1:
            return batch, 1.0
        axes = {len(v) for v in batch.values() if isinstance(v, Tensor) and v.ndim}
        if len(axes) != 1:
            raise AdapterError(
                f"calibrate: a batch's tensors have first axes {sorted(axes)}, not one in common"
            )
        (samples,) = axes
        if samples < self.world:
            raise SpecError(
                f"calibrate: a batch of {samples} samples cannot be shared out to {self.world} "
                "processes; use larger batches or fewer processes"
            )
        count = len(range(self.rank, samples, self.world))
        part = {
            name: value[self.rank :: self.world]
            if isinstance(value, Tensor) and value.ndim
            else value
            for name, value in batch.items()
        }
        return part, count / samples

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum gradients over all processes; a parameter without one counts 0."""
        if self.world == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of process 0 to all processes, in place, so that they stay equal."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def wait(self) -> None:
        """Wait until all processes have come to this call."""
        if self.world > 1:
            dist.barrier()


def join(device: torch.device) -> bool:
    """Join the other processes that a launcher has started; False where there is no launcher.

    Accelerate knows more launchers than torch (MPI, for one) and is used where it is installed.
    The caller ends with ``torch.distributed.destroy_process_group()``.
    """
    sizes = [int(os.environ[name]) for name in SIZES if name in os.environ]
    if max(sizes, default=1) < 2 or dist.is_initialized():
        return False
    try:
        from accelerate import PartialState  # type: ignore[import-untyped]
    except ImportError:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    else:
        PartialState(cpu=device.type == "cpu")
    return dist.is_initialized()
