"""Candidate sets as a phase of calibration."""

from __future__ import annotations

import functools
import os
import signal

import pytest
import torch
from calibration_task import DIM, SPEC, Memory, Regression
from torch import Tensor, nn

from dpq_core.calibrate.candidate_training import CandidateSpec, ChoiceTraining
from dpq_core.calibrate.candidates import mixing
from dpq_core.calibrate.dead_codewords.codewords import codes_of
from dpq_core.calibrate.distributed import Workers
from dpq_core.calibrate.estep import set_codes
from dpq_core.calibrate.layers import changing, quantized_layers, snapshot
from dpq_core.calibrate.loop import Saving, calibrate
from dpq_core.calibrate.phases import phases
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.errors import AdapterError, SpecError
from dpq_core.methods.candidates import CandidateWeight
from dpq_core.methods.quantize import quantize
from dpq_core.run import Run
from dpq_core.runtime.conv import PQConv2d
from dpq_core.runtime.embedding import PQEmbedding
from dpq_core.runtime.linear import PQLinear
from dpq_core.runtime.weight import PQWeight
from dpq_core.spec import PoolSpec
from dpq_core.tensor.partition import Layout, Partition

pytestmark = pytest.mark.slow  # whole runs of a job

ONLY = {
    "steps": 1,
    "block_steps": 50,
    "mode": "end",
    "lr": 0.0,
    "estep": "none",
    "warm_start": False,
    "block_batches": 4,
    "validate_every": 25,
    "candidates": 2,
}
"""Nothing but candidate sets changes the student."""

FORMS = [
    {},
    {"K": 16, "stages": 2},
    {"pool": PoolSpec(method="wkmeans", size=64)},
    {"codebook_dtype": "int8"},
    {"group_scale": True, "permute": True},
    {"transform": "rht"},
    {"orientation": "output"},
    {"row_scale": False, "d": 3},
]

forms = pytest.mark.parametrize("changes", FORMS, ids=lambda c: "+".join(c) or "plain")


def run(task: Regression, changes: dict[str, object] | None = None, **options):
    settings = CalibrateSettings(**{**ONLY, **(changes or {})})
    return calibrate(task, settings, checkpoint=Memory(task.teacher()), **options)


def chosen(report):
    return [e for e in report.esteps if e.what == "candidates"]


def distance(task: Regression, index: int = 0) -> float:
    """Of a block's output to the teacher's, relative, on the validation batches.

    The student's block gets what comes out of the student's blocks before it.
    """
    found = 0.0
    with torch.no_grad():
        for batch in task.validation():
            x, wanted = batch["x"], task.teacher()[: index + 1](batch["x"])
            out = task.student[: index + 1](x)
            found += float((out - wanted).square().mean() / wanted.square().mean())
    return found / 4


def weights_of(task: Regression) -> dict[str, PQWeight]:
    return {layer.name: layer.weight for layer in quantized_layers(task)}


def squared_distances(weight: PQWeight, dense: Tensor) -> Tensor:
    """Of the original's subvectors to all codewords of their group: [G, P, K]."""
    p, parts = weight.partition, weight.parts()
    core = weight.frame().rotate(dense.double())
    if "row_scale" in parts:
        core = core / parts["row_scale"].detach().double()[:, None]
    if "group_scale" in parts:
        core = core / parts["group_scale"].detach().double().repeat_interleave(p.d)[: p.cols]
    points = p.to_subvectors(core.float()).double()
    books = weight.books().detach().double()
    found = []
    for g in range(p.groups):
        used = p.d - p.pad if g == p.groups - 1 else p.d
        words = books[g // p.groups_per_codebook, :, :used]
        found.append((points[g, :used].T[:, None] - words).square().sum(2))
    return torch.stack(found)


def nearest_codes(task: Regression) -> None:
    """Every subvector takes its nearest codeword."""
    original = task.teacher().state_dict()
    for name, weight in weights_of(task).items():
        set_codes(weight, squared_distances(weight, original[name]).argmin(2).int())


def test_a_block_ends_below_its_nearest_codewords():
    task = Regression(blocks=1)
    nearest_codes(task)
    nearest, codes = distance(task), {n: codes_of(w) for n, w in weights_of(task).items()}
    report = run(task)
    (about,) = chosen(report)
    assert about.phase == "candidates of block 1 of 1"
    assert about.kept
    assert about.before == pytest.approx(nearest, rel=1e-5)
    assert about.after == pytest.approx(distance(task), rel=1e-5)
    assert about.after < 0.9 * nearest
    now = weights_of(task)
    assert about.changed == sum(int((codes_of(w) != codes[n]).sum()) for n, w in now.items())
    assert report.changed == about.changed > 0
    assert about.total == sum(c.numel() for c in codes.values())
    assert report.steps == about.step + 1
    assert 0 < about.step <= 50


def test_blocks_get_their_inputs_from_the_chosen_ones_before_them():
    task = Regression(blocks=2)
    codes = {name: codes_of(weight) for name, weight in weights_of(task).items()}
    untouched = distance(task, 1)
    first, second = chosen(run(task))
    assert first.kept
    assert second.kept
    assert second.after == pytest.approx(distance(task, 1), rel=1e-5)
    for name, weight in weights_of(task).items():
        if name.startswith("1."):
            set_codes(weight, codes[name])
    assert second.before == pytest.approx(distance(task, 1), rel=1e-5)
    assert second.before != pytest.approx(untouched, rel=1e-3)
    assert second.after < 0.9 * second.before


@forms
def test_every_stored_form_can_choose(changes):
    task = Regression(blocks=1, spec=SPEC.replace(**changes))
    assert quantized_layers(task)  # in their trainable form
    before = snapshot(task.student)
    (about,) = chosen(run(task))
    assert about.kept
    assert about.after < 0.95 * about.before
    original, second = task.teacher().state_dict(), 0
    for name, weight in weights_of(task).items():
        if weight.partition.stages == 1:
            found = squared_distances(weight, original[name])
            best = found.sort(2).values[:, :, :2]
            taken = found.gather(2, codes_of(weight).long()[..., None])[..., 0]
            assert bool((taken <= best[..., 1] * (1 + 1e-4)).all())
            second += int((taken > best[..., 0] * (1 + 1e-4)).sum())
    assert second > 0 or changes.get("stages")
    now = changing(task.student)
    other = {name for name, value in before.items() if not torch.equal(now[name], value)}
    assert other
    assert all(name.endswith(".codes") for name in other)
    for weight in weights_of(task).values():
        torch.testing.assert_close(weight.pq().decode(), weight.decode())


def module_and_input(kind: str, changes: dict[str, object]) -> tuple[nn.Module, Tensor]:
    shape = {"linear": (24, 20), "embedding": (24, 20), "conv": (24, 4, 3, 3)}[kind]
    layout = Layout.CONV if kind == "conv" else Layout.LINEAR
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    spec = SPEC.replace(**{"K": 8, **changes})
    weight = PQWeight.from_pq(quantize(dense, Partition.of(shape, layout, spec), spec, "w").pq)
    weight.make_trainable()
    x = torch.randn(2, 4, 5, 5) if kind == "conv" else torch.randn(3, 20)
    if kind == "conv":
        return PQConv2d(weight, nn.Conv2d(4, 24, 3)), x
    if kind == "embedding":
        return PQEmbedding(weight), torch.tensor([5, 0, 23, 5])
    return PQLinear(weight), x


@pytest.mark.parametrize("kind", ["linear", "embedding", "conv"])
@forms
def test_equal_shares_are_the_mean_of_the_candidates(kind, changes):
    """Every layer is linear in its weight."""
    module, x = module_and_input(kind, changes)
    weight = module.weight
    p, own = weight.partition, weight.codes.clone()
    points = torch.randn(p.groups, p.d, p.points)
    mixture = CandidateWeight(p, points, weight.books().detach(), n=3, start="uniform")
    each = []
    for codes in mixture.candidates:
        set_codes(weight, codes)
        each.append(module(x).detach())
    weight.codes.copy_(own)
    before = module(x)
    with mixing([weight], [mixture]):
        out = module(x)
        assert set(changing(module)) == set(snapshot(module))
        assert torch.equal(weight.codes, own)
    torch.testing.assert_close(out, torch.stack(each).mean(0), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(out.square().sum(), mixture.logits)
    assert bool(gradient.any())
    assert torch.equal(module(x), before)


@pytest.mark.parametrize("mode", ["block", "end", "both"])
def test_candidates_come_before_the_codewords_of_a_block(mode):
    task = Regression(blocks=2)

    def titles(candidates: int) -> list[tuple[str, int]]:
        settings = CalibrateSettings(steps=8, mode=mode, candidates=candidates)
        found = phases(task, quantized_layers(task), settings, Workers())
        assert all(phase.candidates == phase.title.startswith("candidates") for phase in found)
        return [(phase.title, phase.steps) for phase in found]

    steps = 8 if mode == "block" else 4
    blocks = [(f"block {i} of 2", steps) for i in (1, 2)]
    before = [(f"candidates of {title}", steps) for title, _ in blocks]
    end = [("end to end", 8)]
    plain = {"block": blocks, "end": end, "both": blocks + end}
    assert titles(0) == plain[mode]
    if mode == "end":
        assert titles(2) == before + end
    else:
        pairs = [before[0], blocks[0], before[1], blocks[1]]
        assert titles(2) == pairs + (end if mode == "both" else [])


def test_they_are_off_by_default():
    task, off = Regression(), Regression()
    settings = {"steps": 6, "mode": "both", "block_batches": 2}
    one = calibrate(task, CalibrateSettings(**settings), checkpoint=Memory(task.teacher()))
    two = run(
        off,
        {
            **settings,
            "block_steps": 0,
            "lr": 1e-4,
            "estep": "icm+pv",
            "warm_start": True,
            "candidates": 0,
        },
    )
    assert one.esteps == two.esteps
    assert chosen(one) == []
    assert {e.phase for e in one.esteps} == {"block 1 of 2", "block 2 of 2", "end to end"}
    now = changing(off.student)
    assert all(torch.equal(now[n], v) for n, v in changing(task.student).items())


def test_blocks_without_quantized_weights_are_passed_over():
    task = Regression(blocks=2)
    for part in ("up", "down"):
        module = getattr(task.student[0], part)
        dense = nn.Linear(module.in_features, module.out_features)
        setattr(task.student[0], part, dense.requires_grad_(False))
    (about,) = chosen(run(task, {"block_steps": 5}))
    assert about.phase == "candidates of block 2 of 2"


class GoneError(RuntimeError):
    """The process is gone."""


class At:
    """Progress that stops a run in a given step of a given phase."""

    def __init__(self, title: str, step: int, *, crash: bool) -> None:
        self.title, self.left, self.crash = title, step, crash

    def __call__(self, text: str, done: int, total: int) -> None:
        if not text.startswith(self.title):
            return
        self.left -= 1
        if self.left == 0 and self.crash:
            raise GoneError
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


RESUMED = {"mode": "both", "steps": 8, "block_steps": 8, "lr": 1e-4, "save_every": 3}


@functools.cache
def uninterrupted():
    task = Regression()
    return run(task, RESUMED), changing(task.student)


@pytest.mark.parametrize(
    ("title", "crash"),
    [
        ("candidates of block 1", False),
        ("candidates of block 2", False),
        ("candidates of block 2", True),
        ("block 2", False),
    ],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, title, crash):
    expected, student = uninterrupted()
    stop = Run(progress=At(title, 7, crash=crash))
    with pytest.raises(GoneError if crash else KeyboardInterrupt):
        run(Regression(), RESUMED, saving=Saving(folder=tmp_path / "state"), run=stop)
    task, seen = Regression(), []
    go_on = Run(progress=lambda text, done, total: seen.append((text.split(":")[0], done)))
    resumed = run(task, RESUMED, saving=Saving(folder=tmp_path / "state", resume=True), run=go_on)
    assert resumed.steps == expected.steps == seen[-2][1]
    assert resumed.validations == expected.validations
    assert resumed.esteps == expected.esteps
    assert resumed.after == expected.after
    now = changing(task.student)
    assert all(torch.equal(now[name], value) for name, value in student.items())
    if title.startswith("candidates"):  # begun again, but no block before it
        first = 0 if "1" in title else 16
        assert seen[0] == (f"{title} of 2", first + 1)


class Misled(Regression):
    """Training batches in which all but one input are constant."""

    def train_batch(self, step):
        x = torch.full((self._samples, DIM), 0.1)
        x[:, 0] = torch.linspace(-3, 3, self._samples)
        return {"x": x, "y": self._teacher(x)}


def test_a_block_that_got_worse_is_taken_back():
    task = Misled(blocks=1)
    before = snapshot(task.student)
    report = run(task)
    (about,) = chosen(report)
    assert about.after > about.before
    assert about.changed > 0
    assert not about.kept
    assert report.changed == 0
    now = changing(task.student)
    assert all(torch.equal(now[name], value) for name, value in before.items())


class Contrary(Regression):
    """A task that wants the student as it came."""

    def __init__(self) -> None:
        super().__init__(blocks=1)
        with torch.no_grad():
            self._first = [self.student(batch["x"]) for batch in self.validation()]

    def loss(self, batch):
        wanted = next(
            y
            for b, y in zip(self.validation(), self._first, strict=True)
            if torch.equal(b["x"], batch["x"])
        )
        return (self.student(batch["x"]) - wanted).square().mean()


def test_codes_that_serve_the_task_worse_in_the_end_are_taken_back():
    task = Contrary()
    before = snapshot(task.student)
    settings = {"mode": "block", "block_steps": 0, "steps": 30}
    report = run(task, settings)
    (about,) = chosen(report)
    assert about.after < about.before
    assert about.kept  # by the block's loss
    assert report.after == report.before
    now = changing(task.student)
    assert all(torch.equal(now[name], value) for name, value in before.items())


def test_decoding_again_in_the_backward_pass_chooses_the_same():
    plain, again = Regression(blocks=1), Regression(blocks=1)
    (one,) = chosen(run(plain, {"block_steps": 10, "recompute": False}))
    (two,) = chosen(run(again, {"block_steps": 10, "recompute": True}))
    assert one == two
    now = changing(again.student)
    assert all(torch.equal(now[n], v) for n, v in changing(plain.student).items())


def test_there_are_no_more_candidates_than_codewords():
    task = Regression(blocks=1, spec=SPEC.replace(K=2))
    (about,) = chosen(run(task, {"candidates": 3, "block_steps": 5}))
    assert about.step == 5


class Twin(Workers):
    """One of two processes that have the same samples."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor.mul_(2)

    def sum_gradients(self, parameters) -> None:
        for parameter in parameters:
            parameter.grad *= 2


def test_processes_count_the_regulariser_once():
    p = Partition.of((16, 16), Layout.LINEAR, SPEC.replace(K=8))
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(p.groups, p.d, p.points, generator=generator)
    books = torch.randn(p.codebooks, p.K, p.d, generator=generator)
    dense, spec = p.from_subvectors(points), CandidateSpec(steps=20, codebook_rate=0.0)

    def train(share: float, workers: Workers | None):
        weight = CandidateWeight(p, points, books, n=2, start="uniform")

        def loss(step: int) -> tuple[Tensor, float]:
            return (weight.decode() - dense).square().mean(), share

        stats = list(ChoiceTraining([weight], loss, spec, workers=workers).steps())
        return stats, weight.logits.detach()

    alone, both = train(1.0, None), train(0.5, Twin())
    assert alone[0] == both[0]
    assert torch.equal(alone[1], both[1])


class Poisoned(Regression):
    """One bad batch."""

    def train_batch(self, step):
        batch = super().train_batch(step)
        return {**batch, "x": batch["x"] * torch.nan} if step == 2 else batch


def test_mistakes_are_one_line():
    with pytest.raises(SpecError, match="candidates must be 0, or 2 or more"):
        CalibrateSettings(candidates=1)
    with pytest.raises(AdapterError, match=r"no blocks .*; use mode=.end. without candidates"):
        run(Regression(blockwise=False))
    with pytest.raises(AdapterError, match=r"original weights.*leave out candidates") as caught:
        calibrate(Regression(), CalibrateSettings(**ONLY))
    assert "\n" not in str(caught.value)
    task = Poisoned(blocks=1)
    before = snapshot(task.student)
    with pytest.raises(SpecError, match=r"loss is not finite.*look for damaged values"):
        run(task)
    now = changing(task.student)
    assert all(torch.equal(now[name], value) for name, value in before.items())
