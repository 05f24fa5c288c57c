"""Stage 1 of a whole model: the one file that knows the order of the steps.

open -> plan -> for each tensor: read, quantize, write -> side files -> probe -> finish. Tensors are
read and written one at a time, so that peak memory is set by the largest tensor. With a task, the
model is quantized block by block first, with statistics of its inputs; the results wait on disk.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dpq_core.artifact import ArtifactWriter
from dpq_core.artifact.manifest import format_version
from dpq_core.artifact.shards import SHARD_BYTES
from dpq_core.data.sequential.block_store import BlockStore, discard_blocks
from dpq_core.data.sequential.loop import SequentialOptions
from dpq_core.data.sequential.quantizer import Learned, learn
from dpq_core.device import resolve
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
from dpq_core.tensor.finite import check_finite
from dpq_core.tensor.hidden_axes import Orders
from dpq_core.tensor.plan import Plan, TensorPlan

if TYPE_CHECKING:
    from dpq_core.data.task import CalibrationTask


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """How the output is written.

    Attributes:
        resume: continue a half-written output of the same source and spec.
        overwrite: replace an existing output.
        shard_bytes: start a new weight file beyond this size.
        probe: store outputs of the loaded artifact on a fixed input, where the adapter can.
        budget: bytes that the artifact was planned to take at most: a probe beyond is left out.
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
        adapter: of the source's domain.
        source: as ``adapter.open`` takes it.
        out: folder to write.
        spec: for all tensors; or a plan that has one for each (``dpq_core.planning.planner``).
        overrides: of the spec, by name.
        options: how the output is written.
        run: device and progress.
        task: makes a task whose student is the source, uncompressed. Then every layer that runs in
            it is quantized with statistics of its inputs, which the quantized layers before it
            make; without a task no data is looked at.

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
    learner = None if task is None else task()
    data = None if learner is None else [learner.fingerprint, options.sequential.to_json()]
    identity = fingerprint(checkpoint, plan, adapter.name, data)
    writer = ArtifactWriter(
        out,
        plan,
        adapter=adapter.name,
        source=source,
        fingerprint=identity,
        weights=adapter.weights_names(checkpoint),
        shard_bytes=options.shard_bytes,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    remembers = learner is not None or any(t.axis is not None for t in plan)
    with writer:
        learned, store = Learned(), None
        if remembers and len(writer.done) < len(plan.tensors):
            store = BlockStore(
                writer.out, identity, resume=options.resume, overwrite=options.overwrite
            )
            if learner is not None:
                learned = learn(checkpoint, plan, learner, store, options.sequential, run)
        learner = None  # a whole model
        orders = orders_of(plan, checkpoint, store, resolve(run.device))
        reports = _write_tensors(checkpoint, plan, writer, run, learned, orders)
        _add_files(checkpoint, adapter, writer)
        if options.probe:
            store_probe(adapter, writer, run, options.budget)
        artifact = writer.finish()
        if remembers:
            discard_blocks(writer.out)
    return CompressReport(
        artifact=artifact.path,
        tensors=tuple(reports),
        weights=sum(t.info.numel for t in plan),
        source_nbytes=sum(t.info.nbytes for t in plan),
        nbytes=artifact.nbytes,
        seconds=time.perf_counter() - started,
        peak_memory=peak_memory(),
        segments=learned.segments,
        data_free=learned.missing(plan),
    )


def fingerprint(checkpoint: Checkpoint, plan: Plan, adapter: str, data: Any = None) -> str:
    """Hash of everything that decides the output's bytes; guards ``resume``.

    Args:
        checkpoint: the source.
        plan: what becomes of it.
        adapter: name.
        data: what statistics come from, as JSON; None without.
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
    learned: Learned,
    orders: Orders,
) -> list[TensorReport]:
    total = learned.weights + sum(t.info.numel for t in plan)
    device = resolve(run.device)
    done, reports = learned.weights, []
    for tensor in plan:
        run.progress(tensor.name, done, total)
        started = time.perf_counter()
        resumed = tensor.name in writer.done
        if not resumed:
            _write(checkpoint, tensor, writer, device, learned, orders)
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
    learned: Learned,
    orders: Orders,
) -> None:
    """Write one tensor as it is, or quantized: earlier, or else now."""
    name = tensor.name
    if tensor.spec is None or tensor.partition is None:
        values = orders.apply(name, checkpoint.read(name))
        check_finite(values, name)
        writer.write(name, {name: values}, None)
        return
    if learned.store is not None and name in learned.store.errors:
        found = learned.store.read(name)
        parts, error = found.parts, found.relative_error
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


def _add_files(checkpoint: Checkpoint, adapter: TensorAdapter[Any], writer: ArtifactWriter) -> None:
    """Write what belongs beside the weights."""
    for relative, path in checkpoint.side_files.items():
        writer.add_file(relative, path)
    generated = adapter.generated_files(checkpoint, writer.manifest_draft)
    for relative, content in generated.items():
        writer.add_file(relative, content)
