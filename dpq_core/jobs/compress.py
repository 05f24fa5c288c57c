"""Compression of a whole model into an artifact: the order of the steps.

Open -> plan -> for each tensor: read, quantize, write -> side files -> probe -> finish. Tensors are
read and written one at a time, so that peak memory is set by the largest tensor. With a task, the
model is quantized block by block first, with statistics of its inputs; the results wait on disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpq_core.artifact import ArtifactWriter
from dpq_core.artifact.manifest import format_version
from dpq_core.artifact.shards import SHARD_BYTES
from dpq_core.data.sequential.block_store import BlockStore, discard_blocks
from dpq_core.data.sequential.contract import SequentialOptions
from dpq_core.data.sequential.quantizer import SequentialResult, quantize_sequentially
from dpq_core.data.task import data_entries
from dpq_core.device import resolve
from dpq_core.errors import SpecError
from dpq_core.jobs.compress_report import CompressReport, TensorReport
from dpq_core.jobs.hidden_order import orders_of, stored_parts
from dpq_core.jobs.probe import store_probe
from dpq_core.kernels.cpu.openmp import short_spins
from dpq_core.methods.quantize import quantize
from dpq_core.planning.plan import make_plan
from dpq_core.plugin.adapter import TensorAdapter
from dpq_core.run import Run
from dpq_core.spec import Override, QuantSpec
from dpq_core.tensor.checkpoint import Checkpoint
from dpq_core.tensor.hidden_axes import Orders
from dpq_core.tensor.plan import Plan, TensorPlan

if TYPE_CHECKING:
    from dpq_core.data.task import CalibrationTask


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """Options of ``compress``: how the output is written, and how statistics are collected.

    Attributes:
        resume: continue a half-written output of the same source and spec.
        overwrite: replace an existing output.
        shard_bytes: start a new weight file beyond this size.
        probe: store outputs of the loaded artifact on a fixed input, where the adapter can.
        budget: most bytes that the artifact may take; a probe that exceeds it is left out.
        adapter: an instance of ``Adapter.options["compress"]``; None for its defaults.
        sequential: how statistics are collected, where there is a task.
    """

    resume: bool = False
    overwrite: bool = False
    shard_bytes: int = SHARD_BYTES
    probe: bool = True
    budget: int | None = None
    adapter: Any = None
    sequential: SequentialOptions = field(default_factory=SequentialOptions)


@short_spins()
def compress(
    adapter: TensorAdapter[Any],
    source: str,
    out: Path,
    spec: QuantSpec | Plan,
    overrides: Iterable[Override] = (),
    *,
    options: CompressOptions | None = None,
    run: Run | None = None,
    task: Callable[[], CalibrationTask] | None = None,
) -> CompressReport:
    """Quantize a source into an artifact, tensor by tensor.

    Args:
        adapter: adapter of the source's domain.
        source: the source, as ``adapter.open`` takes it.
        out: folder to write.
        spec: the spec of all tensors, or a plan with one for each (``dpq_core.planning.planner``).
        overrides: changes of the spec for tensors by name.
        options: how the output is written.
        run: device and progress.
        task: makes a task whose student is the uncompressed source. Every layer that runs in it is
            quantized with statistics of its inputs, as the quantized layers before it make them;
            without a task no data is used.

    Raises:
        SourceError: the source cannot be opened or read.
        SpecError: the spec or an override does not fit a tensor.
        ArtifactError: the output exists, belongs to another run, or cannot be written.
    """
    options, run = options or CompressOptions(), run or Run()
    started = time.perf_counter()
    own = adapter.default_options("compress") if options.adapter is None else options.adapter
    checkpoint = adapter.open_with(source, own)
    plan = spec if isinstance(spec, Plan) else make_plan(checkpoint, adapter, spec, overrides)
    calibration = None if task is None else task()
    data = None if calibration is None else [calibration.fingerprint, options.sequential.to_json()]
    identity = fingerprint(checkpoint, plan, adapter.name, data)
    writer = ArtifactWriter(
        out,
        plan,
        adapter=adapter.name,
        source=source,
        fingerprint=identity,
        weights=adapter.weights_names(checkpoint),
        data=[] if calibration is None else data_entries("compress", calibration),
        shard_bytes=options.shard_bytes,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    keeps_blocks = calibration is not None or any(t.axis is not None for t in plan)
    with writer:
        sequential, store = SequentialResult(), None
        if keeps_blocks and len(writer.done) < len(plan.tensors):
            store = BlockStore(
                writer.out, identity, resume=options.resume, overwrite=options.overwrite
            )
            if calibration is not None:
                sequential = quantize_sequentially(
                    checkpoint, plan, calibration, store, options.sequential, run
                )
        calibration = None  # frees a whole model
        orders = orders_of(plan, checkpoint, store, resolve(run.device))
        reports = _write_tensors(checkpoint, plan, writer, run, sequential, orders)
        _add_files(checkpoint, adapter, writer)
        if options.probe:
            store_probe(adapter, writer, run, options.budget)
        artifact = writer.finish()
        if keeps_blocks:
            discard_blocks(writer.out)
    return CompressReport(
        artifact=artifact.path,
        tensors=tuple(reports),
        weights=sum(t.info.numel for t in plan),
        source_nbytes=sum(t.info.nbytes for t in plan),
        nbytes=artifact.nbytes,
        seconds=time.perf_counter() - started,
        peak_memory=peak_memory(),
        segments=sequential.segments,
        data_free=sequential.missing(plan),
        data=tuple(entry.description for entry in artifact.manifest.data),
    )


def fingerprint(checkpoint: Checkpoint, plan: Plan, adapter: str, data: Any = None) -> str:
    """A hash of everything that decides the output's bytes; a resumed run must have the same.

    Args:
        checkpoint: the source.
        plan: the plan of its tensors.
        adapter: name of the adapter.
        data: what the statistics come from, as JSON; None without data.
    """
    specs = {t.name: t.spec and t.spec.to_json() for t in plan}
    version = format_version(t.spec for t in plan if t.spec is not None)
    parts: list[Any] = [version, adapter, checkpoint.fingerprint, specs]
    if data is not None:
        parts.append(data)
    if axes := [asdict(t.axis) for t in plan if t.axis is not None]:
        parts.append({"reordered": axes})
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def peak_memory() -> int:
    """Highest resident memory of this process so far, in bytes.

    Linux's ``ru_maxrss`` survives ``exec``: a child of a large process would report its parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _write_tensors(
    checkpoint: Checkpoint,
    plan: Plan,
    writer: ArtifactWriter,
    run: Run,
    sequential: SequentialResult,
    orders: Orders,
) -> list[TensorReport]:
    total = sequential.weights + sum(t.info.numel for t in plan)
    device = resolve(run.device)
    done, reports = sequential.weights, []
    for tensor in plan:
        run.progress(tensor.name, done, total)
        started = time.perf_counter()
        resumed = tensor.name in writer.done
        if not resumed:
            _write(checkpoint, tensor, writer, device, sequential, orders)
        done += tensor.info.numel
        reports.append(
            TensorReport(
                name=tensor.name,
                shape=tensor.info.shape,
                nbytes=tensor.nbytes,
                bits_per_weight=8 * tensor.nbytes / max(1, tensor.info.numel),
                relative_error=writer.done[tensor.name],
                seconds=time.perf_counter() - started,
                resumed=resumed,
            )
        )
    run.progress("done", total, total)
    return reports


def _write(
    checkpoint: Checkpoint,
    tensor: TensorPlan,
    writer: ArtifactWriter,
    device: torch.device,
    sequential: SequentialResult,
    orders: Orders,
) -> None:
    """Write one tensor: dense, as sequential quantization has quantized it, or quantized now."""
    name = tensor.name
    if tensor.spec is None or tensor.partition is None:
        values = orders.apply(name, checkpoint.read(name))
        _check_finite(values, name)
        writer.write(name, {name: values}, None)
        return
    if sequential.store is not None and name in sequential.store.errors:
        stored = sequential.store.read(name)
        parts, error = stored.parts, stored.relative_error
    else:
        # No name for the weight here: quantize() can then free it before k-means.
        result = quantize(
            orders.in_columns(name, checkpoint.read(name)).to(device),
            tensor.partition,
            tensor.spec,
            name,
        )
        parts, error = result.pq.parts(), result.relative_error
    parts = stored_parts(tensor, {part: value.cpu() for part, value in parts.items()}, orders)
    writer.write(name, {f"{name}.{part}": value for part, value in parts.items()}, error)


def _check_finite(values: Tensor, name: str) -> None:
    """Refuse NaN in a dense tensor, and infinities in a dense weight or bias.

    Infinities elsewhere can be intended: attention masks consist of them. Quantized tensors may
    hold neither, which ``quantize`` checks.

    Raises:
        SpecError: the tensor is damaged.
    """
    if not values.is_floating_point() or not values.numel():
        return
    if values.dtype.itemsize == 1:
        values = values.half()  # float8 has no minimum in torch
    low, high = (value.float().item() for value in values.aminmax())  # NaN if there is any
    parameter = name.rpartition(".")[2] in ("weight", "bias")
    if math.isnan(low) or (parameter and math.isinf(max(-low, high))):
        raise SpecError(f"tensor {name!r} holds NaN or infinite values; repair the checkpoint")


def _add_files(checkpoint: Checkpoint, adapter: TensorAdapter[Any], writer: ArtifactWriter) -> None:
    """Write the files that belong beside the weights."""
    for relative, path in checkpoint.side_files.items():
        writer.add_file(relative, path)
    generated = adapter.generated_files(checkpoint, writer.manifest_draft)
    for relative, content in generated.items():
        writer.add_file(relative, content)
