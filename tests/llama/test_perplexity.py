"""Perplexity against models whose perplexity is known, and against a plain computation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from llama_models import llama_config
from torch.nn import functional

from dpq_core.errors import SourceError, SpecError
from dpq_core.run import Run
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.evaluation.perplexity import Score, read_texts, score, tokenize
from dpq_llama.options import EvaluateOptions

pytestmark = pytest.mark.portable

VOCABULARY = 211


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


def test_the_oracle_can_fail(model, long_ids):
    """A model scored on other targets has another perplexity."""
    hidden = model.base_model(long_ids[None, :32]).last_hidden_state[0, :-1]
    wrong = functional.cross_entropy(model.lm_head(hidden), long_ids[:31]).item()
    assert score(model, long_ids[:32], 32).perplexity != pytest.approx(math.exp(wrong), rel=1e-3)
