"""LlamaTask: names, batches, losses, and artifacts that get better."""

from __future__ import annotations

import dataclasses
import math
import os
import signal

import pytest
import torch
from artifact_model import snapshot
from llama_models import SHAPES, llama_config
from torch.nn import functional

from dpq_core.artifact import Artifact
from dpq_core.calibrate.layers import quantized_layers
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.data.sequential.contract import SequentialOptions
from dpq_core.errors import AdapterError, SourceError, SpecError
from dpq_core.jobs.calibrate import CalibrateOptions as EngineOptions
from dpq_core.jobs.calibrate import calibrate_artifact
from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.run import Run
from dpq_core.spec import AssignmentSpec, QuantSpec
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.calibration.task import calibration, losses
from dpq_llama.options import CalibrateOptions

pytestmark = pytest.mark.slow  # whole runs of a job

CPU = Run(device="cpu")
SMALL = CalibrateOptions(context=16, samples=8, batch_size=4, validation_samples=4)
QUICK = {"iterations": 2, "tail": 1}


def small(**changes):
    return dataclasses.replace(SMALL, **changes)


@pytest.fixture(scope="module")
def source(make_folder):
    return make_folder(**SHAPES["gqa-tied"])


@pytest.fixture(scope="module")
def make_task(source, tied):
    def make(options=SMALL, *, seed=0, student=tied):
        return calibration(str(student), str(source), options, Run(device="cpu", seed=seed))

    return make


@pytest.fixture(scope="module")
def task(make_task):
    return make_task()


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["plain", "gqa-tied", "biases", "odd-tied"])
def test_what_is_trained_has_the_names_of_the_artifact(make_folder, make_artifact, shape):
    folder = make_folder(**SHAPES[shape])
    artifact = make_artifact(folder)
    task = calibration(str(artifact), str(folder), SMALL, CPU)
    compressed = names_compressed(artifact)
    layers = quantized_layers(task)
    assert {layer.name for layer in layers} == compressed
    for layer in layers:
        assert tuple(layer.weight.shape) == Artifact.open(artifact).read(layer.name).shape
    inside = {id(p) for layer in layers for p in layer.weight.parameters()}
    trained = [
        n for n, p in task.student.named_parameters() if p.requires_grad and id(p) not in inside
    ]
    kept = set(Artifact.open(artifact).names()) - compressed
    assert {task.parameter_name(name) for name in trained} == kept


def test_a_model_without_a_head(make_folder, make_artifact, tmp_path):
    from transformers import LlamaModel

    folder = tmp_path / "bare"
    torch.manual_seed(0)
    LlamaModel(llama_config(vocab_size=4096)).save_pretrained(folder)  # as many as the tokenizer
    artifact = make_artifact(folder)
    with pytest.raises(SpecError, match=r"no language-model head.*; give texts or dataset"):
        calibration(str(artifact), str(folder), SMALL, CPU)
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x\n" * 200)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (artifact / name).write_bytes(tokenizer_file(name))
    with pytest.raises(SpecError, match="no other loss than loss='hidden'"):
        calibration(str(artifact), str(folder), small(texts=(str(text),), loss="kl"), CPU)
    task = calibration(str(artifact), str(folder), small(texts=(str(text),)), CPU)
    assert task.name.startswith("distance of hidden states")
    assert {layer.name for layer in quantized_layers(task)} == names_compressed(artifact)
    assert list(task.blocks()) == ["layers.0", "layers.1"]
    batch = task.validation()[0]
    student, teacher = (
        m(input_ids=batch["ids"], use_cache=False).last_hidden_state
        for m in (task.student, task.teacher())
    )
    expected = (student - teacher).square().sum() / teacher.square().sum()
    assert task.loss(batch).item() == pytest.approx(expected.item(), rel=1e-4)


def names_compressed(artifact):
    return {e.name for e in Artifact.open(artifact).manifest.tensors if e.spec is not None}


def tokenizer_file(name):
    from dpq_llama.source.checkpoint import BUILTIN

    return (BUILTIN / "tiny-llama" / name).read_bytes()


def test_blocks_are_the_decoder_layers(task):
    assert list(task.blocks()) == ["model.layers.0", "model.layers.1"]
    assert type(task.teacher().get_submodule(task.blocks()[1])).__name__ == "LlamaDecoderLayer"


# -- batches -------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_step(task, make_task):
    other = make_task(seed=1)
    again = make_task()
    for step in (0, 5, 1000):
        assert torch.equal(task.train_batch(step)["ids"], again.train_batch(step)["ids"])
    assert not torch.equal(task.train_batch(0)["ids"], other.train_batch(0)["ids"])
    assert task.fingerprint == again.fingerprint
    assert task.fingerprint != other.fingerprint


def test_an_epoch_has_every_window_once_and_none_of_validation(make_task):
    task = make_task(small(samples=10))  # an epoch is two batches and a half
    numbers = torch.cat([task.train_batch(step)["window"] for step in range(5)]).tolist()
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(4, 14))
    assert numbers[:10] != numbers[10:]
    assert [b["window"].tolist() for b in task.validation()] == [[0, 1, 2, 3]]
    batch = task.train_batch(3)
    for number, ids in zip(batch["window"].tolist(), batch["ids"], strict=True):
        assert torch.equal(ids, task._windows.ids[number])


def test_validation_is_in_batches_of_one_size(make_task):
    batches = make_task(small(validation_samples=9)).validation()
    assert [len(b["ids"]) for b in batches] == [4, 4, 4]


def test_texts_are_read_with_the_models_tokenizer(tmp_path, make_folder, make_artifact):
    from transformers import AutoTokenizer

    from dpq_llama.source.checkpoint import BUILTIN

    folder = make_folder(vocab_size=4096)
    artifact = make_artifact(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (artifact / name).write_bytes(tokenizer_file(name))
    text = tmp_path / "a.txt"
    text.write_text("def f(x):\n    return x\n" * 40)
    task = calibration(str(artifact), str(folder), small(texts=(str(text),)), CPU)
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN / "tiny-llama")
    assert "return x" in tokenizer.decode(task.train_batch(0)["ids"][0])
    assert "8 windows of 16 tokens of text files" in task.name


# -- losses --------------------------------------------------------------------------------------


def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits[:, :-1].double()


def test_losses_are_those_of_all_logits(make_task):
    found = {}
    for kind in ("kl", "cross-entropy", "both"):
        task = make_task(small(loss=kind))
        batch = task.train_batch(0)
        found[kind] = task.loss(batch).item()
        ours, theirs = (
            logits(m, batch["ids"]).log_softmax(-1) for m in (task.student, task.teacher())
        )
    targets = batch["ids"][:, 1:, None]
    kl = (theirs.exp() * (theirs - ours)).sum(-1).mean().item()
    entropy = -ours.gather(-1, targets).mean().item()
    assert found["kl"] == pytest.approx(kl, rel=1e-4)
    assert found["cross-entropy"] == pytest.approx(entropy, rel=1e-4)
    assert found["both"] == pytest.approx(kl + entropy, rel=1e-4)


def test_auto_is_kl(make_task, task):
    batch = task.train_batch(0)
    assert task.loss(batch).item() == make_task(small(loss="kl")).loss(batch).item()
    assert task.name.startswith("KL to the uncompressed model, 8 windows of 16 tokens of the model")


def test_the_reference_is_the_loss_of_the_teacher(make_task, task):
    assert task.reference_loss() == 0
    entropy = make_task(small(loss="cross-entropy"))
    ids = entropy.validation()[0]["ids"]
    with torch.no_grad():
        expected = entropy.teacher()(input_ids=ids, labels=ids).loss.item()
    assert entropy.reference_loss() == pytest.approx(expected, rel=1e-5)
    assert make_task(small(loss="both")).reference_loss() == pytest.approx(expected, rel=1e-5)


def test_chunks_of_logits_change_neither_losses_nor_gradients(monkeypatch):
    torch.manual_seed(0)
    head, other = torch.nn.Linear(8, 30), torch.nn.Linear(8, 30)
    targets, known = torch.randint(30, (11,)), torch.randn(11, 8)
    sizes = []

    def watched(x):
        sizes.append(len(x))
        return head(x)

    found = []
    for limit in (1 << 25, 30 * 4, 1):
        monkeypatch.setattr(losses, "LOGITS", limit)
        states = torch.linspace(-1, 1, 88).view(11, 8).requires_grad_()
        ours = losses.Predictions(hidden=states, head=watched)
        theirs = losses.Predictions(hidden=known, head=other)
        sizes.clear()
        loss = losses.kl(ours, theirs, 30) + losses.cross_entropy(ours, targets, 30)
        assert max(sizes) == min(11, max(1, limit // 30))
        head.zero_grad()
        loss.backward()
        found.append((loss.detach(), states.grad, head.weight.grad.clone()))
    for one, two, three in zip(*found, strict=True):
        torch.testing.assert_close(two, one)
        torch.testing.assert_close(three, one)
    assert other.weight.grad is None


def test_the_loss_is_a_mean_over_samples(task):
    batch = task.train_batch(0)
    halves = [{k: v[s] for k, v in batch.items()} for s in (slice(0, 1), slice(1, 4))]
    parts = [task.loss(half).item() for half in halves]
    assert task.loss(batch).item() == pytest.approx((parts[0] + 3 * parts[1]) / 4, rel=1e-5)


def test_the_teacher_reads_a_window_once_and_alone(make_task, monkeypatch):
    task, rows = make_task(), []
    task.teacher().register_forward_pre_hook(lambda *_: None)
    task.teacher().base_model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    batch = task.train_batch(0)
    first = task.loss(batch).item()
    assert task.loss(batch).item() == first
    assert rows == [1, 1, 1, 1]
    monkeypatch.setattr("dpq_llama.calibration.task._MEMORY", 0)
    fresh = make_task()
    assert fresh.loss(batch).item() == first
    assert fresh._hidden_of_window == {}


# -- what does not fit ---------------------------------------------------------------------------


def test_a_context_beyond_the_model_is_refused(make_task):
    with pytest.raises(SpecError, match="context=129: more than the 128 positions"):
        make_task(small(context=129))


def test_the_usual_context_is_512_or_what_the_model_has(make_task):
    assert make_task(small(context=0)).train_batch(0)["ids"].shape[1] == 128


def test_another_model_as_reference_is_refused(tied, make_folder):
    with pytest.raises(
        SourceError, match=r"num_hidden_layers is 3, of the artifact 2; .*give it with baseline"
    ):
        calibration(str(tied), str(make_folder(num_hidden_layers=3)), SMALL, CPU)


def test_an_uncompressed_student_has_no_teacher(source):
    task = calibration(str(source), str(source), SMALL, CPU)
    assert task.teacher() is None
    with pytest.raises(AdapterError, match="calibrate an artifact"):
        task.loss(task.train_batch(0))


# -- the whole way -------------------------------------------------------------------------------


def engine(task_options=SMALL, *, resume=False, **settings):
    changes = {"steps": 10, "lr": 1e-3, "estep": "icm", "statistics_batches": 2, **settings}
    return EngineOptions(settings=CalibrateSettings(**changes), adapter=task_options, resume=resume)


@pytest.mark.parametrize("mode", ["end", "block"])
def test_an_artifact_gets_closer_to_the_original(tied, source, tmp_path, mode):
    options = engine(mode=mode, block_batches=2)
    done = calibrate_artifact(LlamaAdapter(), tied, tmp_path / "out", options, CPU)
    report = done.report
    assert report.baseline == 0
    assert report.recovered > (0.2 if mode == "end" else 0.05)
    fresh = calibration(str(tmp_path / "out"), str(source), options.adapter, CPU)
    with torch.no_grad():
        losses_ = [fresh.loss(batch).item() for batch in fresh.validation()]
    assert sum(losses_) / len(losses_) == pytest.approx(report.after, rel=1e-3)
    old, new = Artifact.open(tied), Artifact.open(tmp_path / "out")
    assert new.manifest.stored_nbytes == old.manifest.stored_nbytes
    new.verify()


class Impatient(LlamaAdapter):
    """Ctrl-C in step 4."""

    def calibration(self, *args):
        task = super().calibration(*args)
        draw, seen = task.train_batch, []

        def train_batch(step):
            if step == 4 and not seen:  # an E-step draws it too; a second Ctrl-C would end at once
                seen.append(step)
                os.kill(os.getpid(), signal.SIGINT)
            return draw(step)

        task.train_batch = train_batch
        return task


def test_an_interrupted_run_resumes_to_the_same_bytes(tied, tmp_path):
    options = engine(mode="end", steps=7, estep="icm", statistics_batches=1)
    calibrate_artifact(LlamaAdapter(), tied, tmp_path / "whole", options, CPU)
    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        calibrate_artifact(Impatient(), tied, tmp_path / "out", options, CPU)
    options = dataclasses.replace(options, resume=True)
    calibrate_artifact(LlamaAdapter(), tied, tmp_path / "out", options, CPU)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


@pytest.mark.parametrize("shape", ["plain", "gqa-tied"])
def test_compressing_with_data_looks_at_every_tensor(make_folder, tmp_path, shape):
    folder = str(make_folder(**SHAPES[shape]))
    spec = QuantSpec.preset(2, K=16, kmeans=QUICK).replace(
        assignment=AssignmentSpec(method="ldlq+icm")
    )
    options = CompressOptions(probe=False, sequential=SequentialOptions(batches=2))
    found = {}
    for name, make in (("free", None), ("data", lambda: calibration(folder, folder, SMALL, CPU))):
        out = tmp_path / name
        report = compress(LlamaAdapter(), folder, out, spec, options=options, run=CPU, task=make)
        task = calibration(str(out), folder, SMALL, CPU)
        found[name] = sum(task.loss(batch).item() for batch in task.validation())
    assert report.data_free == ()
    assert [s.name for s in report.segments if s.name.startswith("model.layers")] == [
        "model.layers.0",
        "model.layers.1",
    ]
    assert found["data"] < 0.9 * found["free"]


@pytest.mark.slow
def test_the_builtin_model_on_its_own_text(tmp_path):
    from dpq_llama.options import EvaluateOptions

    adapter = LlamaAdapter()
    spec = QuantSpec.preset(2, kmeans=QUICK)
    compress(adapter, "builtin:tiny-llama", tmp_path / "in", spec)
    own = CalibrateOptions(
        generate=True, context=96, samples=16, batch_size=4, validation_samples=4
    )
    options = engine(own, mode="end", steps=8, lr=3e-4, estep="none", validate_every=4)
    done = calibrate_artifact(adapter, tmp_path / "in", tmp_path / "out", options, CPU)
    assert done.report.recovered > 0.2
    held_out = EvaluateOptions(limit=2, dtype="float32")
    values = [
        math.log(adapter.evaluate(where, held_out, CPU).metrics[0].value)
        for where in (str(tmp_path / "in"), str(tmp_path / "out"), "builtin:tiny-llama")
    ]
    # Eight steps on sixteen short texts; what is lost at the start is little (tensor.basis.gain).
    assert values[2] < values[1] < values[0] - 0.1 * (values[0] - values[2])


def test_the_oracles_can_fail(task):
    batch = task.train_batch(0)
    wrong = logits(task.teacher(), batch["ids"].flip(0))
    right = logits(task.teacher(), batch["ids"])
    assert not torch.allclose(wrong, right)
    assert functional.mse_loss(wrong, right) > 0.01
