"""What comes after the assignment, for ``suites/methods.py``: calibration, and candidate sets.

``calibrated``: the artifact that ``dpq compress --preset best`` would write with the cell's plans
(statistics block by block, from the quantized prefix), then ``dpq calibrate``. Norms and biases are
trained along; they are not counted in any cell.

``candidate sets``: VQ codebooks of ``l2``, and per subvector the two nearest codewords to choose
from, trained block by block on the outputs of the uncompressed block for the inputs that the
quantized prefix makes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from methods_models import Bench
from torch import Tensor, nn

from dpq_core.calibrate.candidate_training import CandidateSpec, train_candidates
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.data.sequential.capture import arguments_of
from dpq_core.data.sequential.contract import SequentialOptions
from dpq_core.jobs.calibrate import CalibrateOptions, calibrate_artifact
from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.methods.candidates import CandidateWeight, install, remove
from dpq_core.methods.quantize import quantize
from dpq_core.planning.plan import plan_tensor
from dpq_core.run import Run
from dpq_core.tensor.basis import selection as basis
from dpq_core.tensor.plan import Plan, TensorPlan
from dpq_core.tensor.pq_tensor import PQTensor, frame_of

SETTINGS = CalibrateSettings(steps=60, mode="end", lr=3e-4, validate_every=15)
STATISTICS = SequentialOptions(batches=12)
CANDIDATES = CandidateSpec(steps=96, codebook_steps=24)


def calibrated(bench: Bench, plans: Sequence[TensorPlan]) -> tuple[int, float, dict[str, Any]]:
    """Compress with statistics and calibrate: bytes, metric, and what the loop says."""
    adapter, run = bench.adapter(), Run(device="cpu")
    checkpoint = adapter.open(bench.source)
    ours = {bench.tensor(plan.name): plan for plan in plans}
    tensors = [
        replace(ours[name], name=name, info=info)
        if name in ours
        else plan_tensor(name, info, None, None)
        for name, info in checkpoint.tensors.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before", Path(folder) / "after"
        own = bench.calibrate_options(Path(folder))
        compress(
            adapter,
            bench.source,
            before,
            Plan(tuple(tensors)),
            options=CompressOptions(probe=False, sequential=STATISTICS),
            run=run,
            task=lambda: adapter.calibration(bench.source, bench.source, own, run),
        )
        score_before = bench.score(str(before))
        options = CalibrateOptions(settings=SETTINGS, adapter=own)
        report = calibrate_artifact(adapter, before, after, options, run).report
        score = bench.score(str(after))
    about = {
        "before_calibration": score_before,
        "loss": report.loss,
        "loss_before": report.before,
        "loss_after": report.after,
        "loss_uncompressed": report.baseline,
        "settings": SETTINGS.to_json(),
    }
    return sum(plan.nbytes for plan in plans), score, about


def candidate_sets(bench: Bench, plans: Sequence[TensorPlan]) -> tuple[int, float, dict[str, Any]]:
    """Train candidate sets block by block: bytes, metric, and relative error of the blocks."""
    errors = []
    for path in bench.blocks():
        block = bench.model.get_submodule(path)
        entries, targets = _data(bench, block)
        mine = [plan for plan in plans if plan.name.startswith(f"{path}.")]
        weights = {plan.name: _candidates(bench, plan) for plan in mine}
        for name, weight in weights.items():
            install(bench.layers[name], weight)
        result = train_candidates(
            block, entries, targets, CANDIDATES, run=lambda entry, block=block: _call(block, entry)
        )
        errors.append(result.error / result.nearest_error)
        for name, weight in weights.items():
            with torch.no_grad():
                weight.codebooks.copy_(weight.codebooks.half())
                decoded = weight.decode()
            remove(bench.layers[name])
            bench.put(name, decoded)
    about = {"block_error_over_nearest": errors, "settings": asdict(CANDIDATES)}
    return sum(plan.nbytes for plan in plans), bench.score(), about


@torch.no_grad()
def _data(bench: Bench, block: nn.Module) -> tuple[list[Any], list[Tensor]]:
    """What the quantized prefix hands the block, which is uncompressed yet, and its outputs."""
    entries = [arguments_of(block, forward) for forward in bench.batches(size=2)]
    return entries, [_call(block, entry) for entry in entries]


def _call(block: nn.Module, entry: Any) -> Tensor:
    args, kwargs = entry
    output = block(*args, **kwargs)
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _candidates(bench: Bench, plan: TensorPlan) -> CandidateWeight:
    p, spec = plan.partition, plan.spec
    assert p is not None
    assert spec is not None
    weight = bench.weights[plan.name]
    pq: PQTensor = quantize(weight, p, spec, plan.name).pq
    frame = frame_of(p, pq.stored)
    matrix = frame.rotate(p.to_matrix(weight))
    points = basis.scaled_subvectors(matrix, p, pq.stored.get("row_scale"))
    return CandidateWeight(p, points, pq.books(), n=2, frame=frame)
