"""Perplexity against models whose perplexity is known, and against a plain computation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from llama_models import llama_config
from torch.nn import functional

import dpq
from dpq_core.errors import SourceError, SpecError
from dpq_core.run import Run
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.evaluation.perplexity import Score, compare, read_texts, score, tokenize
from dpq_llama.options import EvaluateOptions
from dpq_llama.source.checkpoint import BUILTIN

pytestmark = pytest.mark.portable

VOCABULARY = 211
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96}
SMALL |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaForCausalLM

    torch.manual_seed(1)
    return LlamaForCausalLM(llama_config()).eval()


@pytest.fixture(scope="module")
def long_ids():
    return torch.randint(VOCABULARY, (333,), generator=torch.Generator().manual_seed(2))


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(model, long_ids):
    uniform = SimpleNamespace(
        device=torch.device("cpu"),
        config=model.config,
        base_model=model.base_model,
        get_output_embeddings=lambda: lambda x: torch.zeros(*x.shape[:-1], VOCABULARY),
    )
    result = score(uniform, long_ids, 16)
    assert result.perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert (result.windows, result.tokens) == (20, 20 * 15)


@pytest.mark.parametrize("context", [2, 32, 100])
def test_it_equals_the_loss_that_transformers_computes_per_window(model, long_ids, context):
    windows = long_ids[: len(long_ids) // context * context].view(-1, context)
    with torch.no_grad():
        losses = [model(w[None], labels=w[None]).loss.double() for w in windows]
    expected = math.exp(torch.stack(losses).mean())
    assert score(model, long_ids, context).perplexity == pytest.approx(expected, rel=1e-5)


def test_windows_do_not_see_each_other_and_the_tail_is_dropped(model, long_ids):
    changed = long_ids.clone()
    changed[:64] = 7
    changed[320:] = 3
    whole, part = score(model, changed, 64), score(model, changed[64:320], 64)
    first = score(model, changed[:64], 64)
    assert whole.windows == 5
    assert whole.nats == pytest.approx(first.nats + part.nats, rel=1e-5)


def test_batches_and_limits(model, long_ids):
    whole = score(model, long_ids, 32, batch_size=1)
    assert score(model, long_ids, 32, batch_size=7).nats == pytest.approx(whole.nats, rel=1e-5)
    limited = score(model, long_ids, 32, limit=3)
    assert limited.windows == 3
    assert limited.nats == pytest.approx(score(model, long_ids[:96], 32).nats, rel=1e-5)
    assert score(model, long_ids, 32, limit=999).windows == 10


def test_progress_counts_windows(model, long_ids):
    seen = []
    score(model, long_ids, 100, batch_size=2, progress=lambda *a: seen.append(a))
    assert seen == [("perplexity", 0, 3), ("perplexity", 2, 3), ("perplexity", 3, 3)]


def test_a_text_shorter_than_a_window_is_refused(model, long_ids):
    with pytest.raises(SpecError, match="333 tokens, fewer than one window of 334"):
        score(model, long_ids, 334)


def test_bits_per_byte_do_not_depend_on_the_tokenizer():
    # The same text as 100 tokens of 2 bytes or 50 of 4, predicted equally well.
    fine = Score(nats=99 * math.log(4), tokens=99, windows=1)
    coarse = Score(nats=49 * math.log(16), tokens=49, windows=1)
    assert fine.bits_per_byte(100, 200) == pytest.approx(1.0)
    assert coarse.bits_per_byte(50, 200) == pytest.approx(1.0)


def test_texts_are_joined_by_an_empty_line(tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("one\n", "utf-8")
    second.write_text("twö", "utf-8")
    assert read_texts((first,)) == "one\n"
    assert read_texts((first, second)) == "one\n\n\ntwö"
    second.write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError, match="not UTF-8"):
        read_texts((second,))
    with pytest.raises(SourceError, match="cannot read the text"):
        read_texts((tmp_path / "none.txt",))


def test_an_empty_text_is_refused():
    with pytest.raises(SourceError, match="empty"):
        tokenize(lambda *a, **k: {"input_ids": []}, "")


def test_overflow_is_infinite_not_an_error():
    assert Score(nats=1e6, tokens=1, windows=1).perplexity == math.inf


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["builtin:tiny-llama"])
def test_the_builtin_model_is_scored_on_its_held_out_text(shape):
    options = EvaluateOptions(limit=2, dtype="float32")
    perplexity, bits = LlamaAdapter().evaluate(shape, options, Run(device="cpu")).metrics
    assert perplexity.protocol == "context 512, 1,022 tokens in 2 windows of heldout.txt, float32"
    assert 1 < perplexity.value < 1000
    assert 0.1 < bits.value < 8
    assert not perplexity.higher_is_better


def test_other_models_need_a_text(make_folder):
    with pytest.raises(SpecError, match=r"give texts \(a held-out text\) or tasks"):
        LlamaAdapter().evaluate(str(make_folder()), EvaluateOptions(), Run(device="cpu"))


def test_a_context_beyond_the_model_is_refused():
    options = EvaluateOptions(context=4096)
    with pytest.raises(SpecError, match="context=4096: more than the 1024 positions"):
        LlamaAdapter().evaluate("builtin:tiny-llama", options, Run(device="cpu"))


@pytest.mark.parametrize(
    "wrong",
    [{"context": 1}, {"context": -1}, {"limit": -1}, {"batch_size": 0}, {"dtype": "int8"}],
    ids=str,
)
def test_options_out_of_range(wrong):
    with pytest.raises(SpecError, match=": must be "):
        EvaluateOptions(**wrong)


@pytest.fixture(scope="module")
def other_model():
    from transformers import LlamaForCausalLM

    torch.manual_seed(3)
    return LlamaForCausalLM(llama_config(initializer_range=0.3)).eval()


def test_a_comparison_is_both_scores_and_their_distance(model, other_model, long_ids):
    both = compare(model, other_model, long_ids, 32, batch_size=3)
    assert both.model.nats == pytest.approx(score(model, long_ids, 32).nats, rel=1e-5)
    assert both.baseline.nats == pytest.approx(score(other_model, long_ids, 32).nats, rel=1e-5)
    windows = long_ids[:320].view(10, 32)
    with torch.no_grad():
        ours, theirs = (m(windows).logits[:, :-1].double() for m in (model, other_model))
    expected = functional.kl_div(
        ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True
    )
    assert both.divergence == pytest.approx(expected.sum(-1).mean().item(), rel=1e-4)
    first = expected.sum(-1)[0].tolist()  # of the first window, position by position
    assert both.first == pytest.approx(first, rel=1e-3)
    same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    assert both.agreement == pytest.approx(same)


def test_a_model_is_no_distance_from_itself(model, long_ids):
    both = compare(model, model, long_ids, 32)
    assert both.divergence == 0
    assert both.agreement == 1


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere"])
def test_logits_are_those_of_the_whole_model(kind, long_ids):
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    changes = {
        "gemma2": {"final_logit_softcapping": 0.5, "head_dim": 16},
        "granite": {"logits_scaling": 8.0},
        "cohere": {"logit_scale": 0.25},
    }
    config = CONFIG_MAPPING[kind](**{**SMALL, **changes[kind]})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        loss = model(long_ids[None, :32], labels=long_ids[None, :32]).loss.item()
    assert score(model, long_ids[:32], 32).nats / 31 == pytest.approx(loss, rel=1e-4)


def test_the_rated_text_is_the_beginning_of_what_was_read():
    options = EvaluateOptions(
        texts=("builtin",), context=48, limit=2, dtype="float32", baseline="builtin:tiny-llama"
    )
    evaluation = LlamaAdapter().evaluate("builtin:tiny-llama", options, Run(device="cpu"))
    pieces = evaluation.text.pieces
    assert len(pieces) == 48
    assert all(value == 0 for _, value in pieces)  # of a model to itself
    words = "".join(piece for piece, _ in pieces).removeprefix("<s>").strip()
    heldout = (BUILTIN / "tiny-llama" / "heldout.txt").read_text("utf-8")
    assert len(words) > 48
    assert heldout.strip().startswith(words)


@pytest.mark.slow
def test_a_baseline_is_measured_in_the_same_pass():
    wide = {"dtype": "float32"}  # torch has no bfloat16 attention where AVX-512 is masked
    report = dpq.evaluate("builtin:tiny-llama", baseline="builtin:tiny-llama", limit=2, **wide)
    names = [m.name for m in report.result.evaluation.metrics]
    assert names == ["perplexity", "bits_per_byte", "kl_divergence", "top1_agreement"]
    assert report.result.metric("kl_divergence").value == 0
    assert report.result.metric("top1_agreement").value == 1
    assert report.baseline.metric("perplexity") == report.result.metric("perplexity")
    assert report.baseline.metric("kl_divergence") is None
    left_out = dpq.evaluate("builtin:tiny-llama", baseline="none", limit=1, **wide)
    assert left_out.baseline is None


def test_a_baseline_of_other_tokens_is_measured_alone(make_folder, tmp_path):
    from shutil import copy

    other = tmp_path / "other"
    dpq.export(str(make_folder(vocab_size=4099)), other, adapter="llama", to="hf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        copy(BUILTIN / "tiny-llama" / name, other)
    (tmp_path / "text.txt").write_text("! # $ %" * 20)
    report = dpq.evaluate(
        "builtin:tiny-llama", baseline=other, texts=tmp_path / "text.txt", context=8, limit=1
    )
    assert report.result.metric("kl_divergence") is None
    assert any("has other tokens" in note for note in report.result.evaluation.notes)
    assert report.baseline.metric("perplexity") is not None


def test_the_oracle_can_fail(model, long_ids):
    """A model scored on other targets has another perplexity."""
    hidden = model.base_model(long_ids[None, :32]).last_hidden_state[0, :-1]
    wrong = functional.cross_entropy(model.lm_head(hidden), long_ids[:31]).item()
    assert score(model, long_ids[:32], 32).perplexity != pytest.approx(math.exp(wrong), rel=1e-3)
