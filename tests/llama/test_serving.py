"""``dpq serve``: transformers' OpenAI-compatible server on an artifact, asked over loopback."""

from __future__ import annotations

import shutil
import socket

import openai
import pytest
import torch
from llama_models import SHAPES

from dpq_core.errors import SpecError
from dpq_core.run import Run
from dpq_llama.compiled.decoder import CompiledDecoder
from dpq_llama.serving import started

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }} {% endfor %}assistant:"
ASKED = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def folder(make_folder, make_artifact, tmp_path_factory):
    """An artifact of trellis codes with a tokenizer of letters and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    copied = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(make_artifact(make_folder(**SHAPES["gqa-tied"]), trellis_rate=2.0), copied)
    names = ["<s>", "</s>", "<pad>", *map(chr, range(32, 127))]
    letters = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<pad>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(copied)
    return copied


@pytest.fixture(scope="module")
def client(folder):
    port = free_port()
    with (
        started(str(folder), "127.0.0.1", port, Run(device="cpu")),
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as asking,
    ):
        yield asking


def expected(folder):
    """What ``generate`` writes after the chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("user:hi assistant:", return_tensors="pt", add_special_tokens=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=5, do_sample=False)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_models_chats_and_streams_are_those_of_the_artifact(client, folder, monkeypatch):
    stream, prompts = CompiledDecoder.stream, []
    monkeypatch.setattr(
        CompiledDecoder,
        "stream",
        lambda self, ids, **o: prompts.append(ids) or stream(self, ids, **o),
    )
    assert [model.id for model in client.models.list()] == [str(folder)]
    answer = client.chat.completions.create(model=str(folder), **ASKED)
    text = expected(folder)
    assert answer.choices[0].message.content.strip() == text.strip()
    assert 0 < answer.usage.completion_tokens <= 5
    pieces = client.chat.completions.create(model=str(folder), stream=True, **ASKED)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert streamed.strip() == text.strip()
    assert len(prompts) == 2, "the compiled step decodes"
    completion = client.completions.create(model=str(folder), prompt="a", max_tokens=3)
    assert completion.choices[0].text


def test_an_address_that_is_taken_is_refused_before_anything_is_loaded(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(SpecError, match=rf"cannot listen at 127\.0\.0\.1:{port}"),
            started(str(folder), "127.0.0.1", port, Run(device="cpu")),
        ):
            pass


def test_an_engine_that_does_not_exist_is_refused(folder):
    run = Run(device="cpu")
    with (
        pytest.raises(SpecError, match="must be one of auto, compiled, transformers"),
        started(str(folder), "127.0.0.1", free_port(), run, "other"),
    ):
        pass
