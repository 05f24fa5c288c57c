"""Samples: reproducible text; the probe: small, fixed, and different for a different model."""

from __future__ import annotations

from dataclasses import replace
from shutil import copytree

import pytest
import torch

from dpq_core.artifact import Artifact
from dpq_core.errors import SourceError, SpecError
from dpq_core.run import Run
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.evaluation import generation
from dpq_llama.options import SampleOptions
from dpq_llama.source.checkpoint import BUILTIN

RUN = Run(device="cpu")
TINY = "builtin:tiny-llama"


def sample(out=None, seed=0, **options):
    chosen = SampleOptions(max_new_tokens=6, **options)
    return LlamaAdapter().sample(TINY, chosen, Run(device="cpu", seed=seed), out)


@pytest.mark.slow
def test_text_continues_its_prompt_and_depends_on_the_seed_only(tmp_path):
    prompts = ("import os\n", "class ")
    state = torch.get_rng_state()
    first = sample(tmp_path / "out", prompt=prompts, temperature=1.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert [t.startswith(p) for t, p in zip(first.texts, prompts, strict=True)] == [True, True]
    assert first.texts == sample(prompt=prompts, temperature=1.5).texts
    assert first.texts != sample(prompt=prompts, temperature=1.5, seed=1).texts
    assert [path.read_text("utf-8") for path in first.files] == list(first.texts)


def test_temperature_zero_needs_no_seed():
    first = sample(prompt=("def ",), temperature=0)
    assert first.texts == sample(prompt=("def ",), temperature=0, seed=9).texts
    assert first.files == ()


def test_texts_are_streamed_in_pieces():
    pieces = []
    run = Run(device="cpu", stream=lambda *piece: pieces.append(piece))
    prompts = ("import os\n", "class ")
    chosen = SampleOptions(max_new_tokens=12, prompt=prompts, temperature=0)
    sampling = LlamaAdapter().sample(TINY, chosen, run, None)
    for number, text in enumerate(sampling.texts):
        own = [piece for at, _, piece in pieces if at == number]
        assert len(own) > 2
        assert "".join(own) == text
    assert {title for _, title, _ in pieces} == {""}


def test_a_baseline_writes_to_the_same_prompts_at_the_same_seed(tmp_path):
    titles = []
    run = Run(device="cpu", seed=3, stream=lambda _, title, __: titles.append(title))
    chosen = SampleOptions(max_new_tokens=6, prompt=("def ", "if "), baseline=TINY)
    sampling = LlamaAdapter().sample(TINY, chosen, run, tmp_path)
    assert sampling.baseline_texts == sampling.texts
    assert set(titles) == {TINY}
    names = ["sample-0.txt", "sample-1.txt", "sample-0-baseline.txt", "sample-1-baseline.txt"]
    assert [path.name for path in sampling.files] == names


def test_a_chat_shows_the_answer_to_the_templates_text(tmp_path):
    folder = tmp_path / "chat"
    copytree(BUILTIN / "tiny-llama", folder)
    template = "def {{ messages[0]['content'] }}{% if add_generation_prompt %}(x):{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    chosen = SampleOptions(max_new_tokens=8, temperature=0, prompt=("area",))
    pieces = []
    run = Run(device="cpu", stream=lambda _, __, piece: pieces.append(piece))
    answer = LlamaAdapter().sample(str(folder), replace(chosen, chat=True), run, None).texts[0]
    whole = LlamaAdapter().sample(TINY, replace(chosen, prompt=("def area(x):",)), RUN, None)
    assert whole.texts[0] == "def area(x):" + answer
    assert "".join(pieces) == answer
    with pytest.raises(SpecError, match="has no chat template"):
        LlamaAdapter().sample(TINY, replace(chosen, chat=True), RUN, None)


def test_a_prompt_beyond_the_context_is_refused():
    with pytest.raises(SpecError, match="the model takes 1 to 1023"):
        sample(prompt=("x = 1\n" * 2000,))


def test_a_model_without_a_tokenizer_is_refused(make_folder):
    with pytest.raises(SourceError, match=r"no tokenizer\.json"):
        LlamaAdapter().sample(str(make_folder()), SampleOptions(), RUN, None)


def test_a_tokenizer_with_more_tokens_than_the_table_is_named(tied):
    from dpq_llama.source.loading import check_ids, load_folder

    model = load_folder(tied, "cpu", "auto")
    check_ids(model, torch.tensor([[0, 210]]))
    with pytest.raises(SourceError, match="token 211, the model's table has 211 entries: use"):
        check_ids(model, torch.tensor([[3, 211]]))


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"dtype": "x"}], ids=str
)
def test_options_out_of_range(wrong):
    with pytest.raises(SpecError, match=": must be "):
        SampleOptions(**wrong)


@pytest.mark.slow
def test_the_probe_recognises_the_model(tied, make_folder, make_artifact):
    probe = LlamaAdapter().probe(Artifact.open(tied), RUN)["logits"]
    assert probe.shape == (4, 211)
    assert probe.dtype == torch.float32
    other = make_artifact(make_folder(tie_word_embeddings=True, num_key_value_heads=2, seed=5))
    different = LlamaAdapter().probe(Artifact.open(other), RUN)["logits"]
    assert not torch.allclose(probe, different, atol=0.5)


@pytest.mark.parametrize(("compiled", "engine"), [(True, "compiled code"), (False, "transformers")])
def test_the_speed_is_of_the_tokens_that_were_generated(monkeypatch, compiled, engine):
    monkeypatch.setattr(generation, "_TIMED_TOKENS", 3)
    if not compiled:
        monkeypatch.setattr(generation, "_decoder", lambda *_: None)
    metric = LlamaAdapter().speed(TINY, RUN)
    assert (metric.name, metric.higher_is_better) == ("tokens/s", True)
    assert metric.value > 0
    assert metric.protocol.startswith(f"3 tokens by {engine}")
