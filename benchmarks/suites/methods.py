"""Methods at equal bytes on ``builtin:tiny-llama`` and ``builtin:tiny-dit``.

    python benchmarks/suites/methods.py --model tiny-llama --bits 2 --method "PQ + wkmeans pool"

A cell is a method, an assignment and a budget of bits per weight over the linear layers of the
blocks, everything that is stored counted: codes, codebooks, pools, maps, scales, permutations and
signs. A method has some subvector lengths and codebook sizes to choose from; ``allocate`` picks for
every layer so that the budget is kept and the predicted error, every weight of the model counting
alike, is least. Cells that are in the records already are left out.

``l2`` looks at no data; ``ldlq+icm`` at the second moments of the inputs in the uncompressed model.
``--assignment calibrated`` and ``--assignment "candidate sets"`` train (``methods_trained.py``).
``benchmarks/methods_tables.py`` writes the tables of docs/methods.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from methods_models import BENCHES, Bench
from methods_rtn import GRID, Rounding
from methods_trained import calibrated, candidate_sets
from record import RESULTS, append
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.methods.output_aware import InputStatistics
from dpq_core.methods.quantize import quantize
from dpq_core.planning.allocate import Choice, allocate
from dpq_core.planning.plan import plan_tensor
from dpq_core.planning.predict import Curve, curve
from dpq_core.spec import QuantSpec
from dpq_core.tensor.checkpoint import TensorInfo
from dpq_core.tensor.partition import Layout
from dpq_core.tensor.plan import TensorPlan

SUITE = "methods"
BITS = (2.0, 3.0, 1.25, 4.0, 2.5)
ASSIGNMENTS = ("l2", "ldlq+icm")
TRAINED = {"calibrated": ("ldlq+icm", calibrated), "candidate sets": ("l2", candidate_sets)}
"""Name -> the assignment it begins with, and what comes then; measured on request only."""
SEED = 0
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12)


@dataclass(frozen=True)
class Method:
    """What is stored, and what there is to choose from.

    Attributes:
        changes: of QuantSpec.
        sizes: K.
        lengths: d.
    """

    changes: Mapping[str, Any]
    sizes: tuple[int, ...] = (256,)
    lengths: tuple[int, ...] = LENGTHS

    def specs(self, assignment: str) -> Iterator[QuantSpec]:
        """Its candidates; the assignment is that of the preset ``best``."""
        how = {"method": assignment, "updates": 2}
        for d, K in itertools.product(self.lengths, self.sizes):
            yield QuantSpec().replace(d=d, K=K, assignment=how, **self.changes)


SHARED = {"scope": "tensor"}
PQ = {"scope": "subspace", "orientation": "auto"}
SMALL = (4, 8, 16, 32, 64, 128, 256)
POOLED = (16, 32, 64, 128, 256)
LONG = (4, 6, 8, 10, 12, 14, 16)

METHODS: dict[str, Method | None] = {
    "RTN": None,
    "VQ": Method(SHARED),
    "shared K=1024": Method(SHARED, (1024,)),
    "shared K=4096": Method(SHARED, (4096,)),
    "shared K=256 to 4096": Method(SHARED, (256, 512, 1024, 2048, 4096)),
    "permute + shared": Method({"scope": "auto", "permute": True}),
    "permute + shared, int8": Method({"scope": "auto", "permute": True, "codebook_dtype": "int8"}),
    "rht + shared": Method({**SHARED, "transform": "rht"}),
    "additive 2x8": Method({**SHARED, "stages": 2}, lengths=LONG),
    "PQ": Method(PQ, SMALL),
    "rht + PQ": Method({**PQ, "transform": "rht"}, SMALL),
    "PQ + greedy pool": Method({**PQ, "pool": {"method": "greedy"}}, POOLED),
    "PQ + wkmeans pool": Method({**PQ, "pool": {"method": "wkmeans"}}, POOLED),
    "PQ + wkmeans pool, int8": Method(
        {**PQ, "pool": {"method": "wkmeans"}, "codebook_dtype": "int8"}, POOLED
    ),
}
"""Name -> method; None rounds to a grid."""


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    model: str
    method: str
    assignment: str
    bits: float


@dataclass
class Fitter:
    """Chooses among the candidates of a method for every layer, within a budget.

    Attributes:
        bench: the model.
        curves: layer, d and axis -> error over K, measured once.
    grids: layer -> bytes and error of every grid, measured once.
    """

    bench: Bench
    curves: dict[tuple[str, int, str], Curve] = field(default_factory=dict)
    grids: dict[str, list[Choice]] = field(default_factory=dict)

    def plans(self, method: Method, assignment: str, budget: int) -> list[TensorPlan]:
        """One plan per layer.

        Raises:
            SpecError: even the smallest candidates take more than the budget.
        """
        specs = tuple(method.specs(assignment))
        options = [
            self._candidates(name, weight, specs) for name, weight in self.bench.weights.items()
        ]
        items = [[Choice(plan.nbytes, self._cost(plan)) for plan in option] for option in options]
        picked = allocate(items, budget)
        return [option[index] for option, index in zip(options, picked, strict=True)]

    def _candidates(
        self, name: str, weight: Tensor, specs: Iterable[QuantSpec]
    ) -> list[TensorPlan]:
        info = TensorInfo(tuple(weight.shape), weight.dtype)
        plans = [plan_tensor(name, info, Layout.LINEAR, spec) for spec in specs]
        pooled = [plan for plan in plans if plan.partition and plan.partition.pool]
        return pooled or plans  # pools are what the method is about, where they pay at all

    def _cost(self, plan: TensorPlan) -> float:
        p, spec = plan.partition, plan.spec
        assert p is not None
        assert spec is not None
        key = (plan.name, p.d, p.orientation)
        if key not in self.curves:
            matrix = self.bench.weights[plan.name]
            self.curves[key] = curve(matrix, p, spec, plan.name)
        return plan.info.numel * self.curves[key].at(p.K**p.stages)

    def roundings(self, name: str, options: Iterable[Rounding]) -> list[Choice]:
        """Bytes of a layer on every grid, and its error in units of the mean square weight."""
        if name not in self.grids:
            weight = self.bench.weights[name]
            energy = float(weight.square().mean())
            self.grids[name] = [
                Choice(
                    one.nbytes(*weight.shape),
                    float((one.nearest(weight) - weight).square().sum()) / energy,
                )
                for one in options
            ]
        return self.grids[name]


def rounded(fitter: Fitter, hessians: Mapping[str, Tensor], budget: int) -> int:
    """Round every layer to a grid, with error feedback where there are statistics; bytes taken."""
    bench, total = fitter.bench, 0
    options = [Rounding(*values) for values in GRID]
    picked = allocate([fitter.roundings(name, options) for name in bench.weights], budget)
    for (name, weight), index in zip(bench.weights.items(), picked, strict=True):
        one, H = options[index], hessians.get(name)
        bench.put(name, one.nearest(weight) if H is None else one.feedback(weight, H))
        total += one.nbytes(*weight.shape)
    return total


def quantized(bench: Bench, hessians: Mapping[str, Tensor], plans: Iterable[TensorPlan]) -> int:
    """Quantize every layer by its plan; bytes taken."""
    total = 0
    for plan in plans:
        assert plan.partition is not None
        assert plan.spec is not None
        known = InputStatistics(hessian=hessians.get(plan.name))
        weight = bench.weights[plan.name]
        pq = quantize(weight, plan.partition, plan.spec, plan.name, statistics=known).pq
        bench.put(plan.name, pq.decode())
        total += pq.nbytes
    return total


def measure(cell: Cell, bench: Bench, fitter: Fitter, hessians: Mapping[str, Tensor]) -> Any:
    """Fit, quantize and score one cell."""
    weights = sum(weight.numel() for weight in bench.weights.values())
    budget, method = int(cell.bits * weights / 8), METHODS[cell.method]
    base, train = TRAINED.get(cell.assignment, (cell.assignment, None))
    known = {} if base == "l2" else hessians
    plans = [] if method is None else fitter.plans(method, base, budget)
    wall, cpu = time.perf_counter(), time.process_time()
    about: dict[str, Any] = {}
    if train is not None:
        nbytes, score, about = train(bench, plans)
    elif method is None:
        nbytes = rounded(fitter, known, budget)
    else:
        nbytes = quantized(bench, known, plans)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    if train is None:
        score = bench.score()
    bench.restore()
    shapes = sorted({f"d={p.spec.d} K={p.spec.K}" for p in plans if p.spec})
    return {
        "nbytes": nbytes,
        "bits_per_weight": 8 * nbytes / weights,
        bench.metric: score,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "chosen": shapes,
        **about,
    }


def done(folder: Path = RESULTS) -> set[Cell]:
    """The cells that are in the records."""
    path = folder / f"{SUITE}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = Cell.__dataclass_fields__
    return {Cell(**{key: json.loads(line)["spec"][key] for key in names}) for line in lines}


def main() -> None:
    """Measure the cells that are asked for and append a record of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=sorted(BENCHES))
    parser.add_argument("--bits", type=float, action="append")
    parser.add_argument("--method", action="append", choices=list(METHODS))
    parser.add_argument("--assignment", action="append", choices=(*ASSIGNMENTS, *TRAINED))
    options = parser.parse_args()
    torch.set_num_threads(1)
    ready: dict[str, tuple[Bench, Fitter, dict[str, Tensor], float]] = {}
    wanted = itertools.product(
        options.bits or BITS,
        options.assignment or ASSIGNMENTS,
        options.method or METHODS,
        options.model or BENCHES,
    )  # the quick ones first
    for bits, assignment, method, model in wanted:
        cell = Cell(model, method, assignment, bits)
        if cell in done():
            continue
        if model not in ready:
            bench = BENCHES[model]()
            ready[model] = bench, Fitter(bench), bench.hessians(), _uncompressed(bench)
        bench, fitter, hessians, uncompressed = ready[model]
        try:
            row = measure(cell, bench, fitter, hessians)
        except SpecError as error:
            print(cell, error, flush=True)  # such as codebooks that take more than the budget
            continue
        row["uncompressed"] = uncompressed
        spec = {**vars(cell), "metric": bench.metric, **bench.protocol}
        append(SUITE, seed=SEED, spec=spec, results=row, packages=("transformers", "diffusers"))
        print(cell, json.dumps(row), flush=True)


def _uncompressed(bench: Bench) -> float | None:
    """The metric before quantization; None where it is infinite by definition."""
    score = bench.score()
    return score if score < float("inf") and not bench.higher_is_better else None


if __name__ == "__main__":
    main()
