"""How dpq gets into transformers, and what happens to those who forget to import it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dpq_llama.hub.registration import MARK


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, offline."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def printed(code: str) -> str:
    done = run(code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


REGISTERED = """
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as Q
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as C
print(Q["dpq"].__name__, C["dpq"].__name__)
"""
NAMES = "DPQQuantizer DPQConfig"


@pytest.mark.slow  # every case starts an interpreter and imports transformers
@pytest.mark.parametrize(
    "first",
    [
        "import dpq_llama",
        "import transformers.modeling_utils; import dpq_llama",
        "import dpq_llama.hub.quantizer",
    ],
)
def test_importing_dpq_llama_registers_before_or_after_transformers(first):
    again = "import dpq_llama, importlib; importlib.reload(dpq_llama)"
    assert printed(first + REGISTERED + again + REGISTERED).splitlines() == [NAMES, NAMES]


def test_importing_dpq_llama_does_not_import_transformers_or_torch():
    code = "import sys, dpq_llama.adapter\nprint({'torch', 'transformers'} & set(sys.modules))"
    assert printed(code) == "set()"


@pytest.mark.slow
def test_without_the_import_every_way_to_a_model_fails_and_says_what_to_do(tied, resaved):
    """But with ``trust_remote_code``, which needs no import."""
    code = f"""
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaForCausalLM
for folder in ({str(tied)!r}, {str(resaved)!r}):
    AutoConfig.from_pretrained(folder)
    for loader in (AutoModel, AutoModelForCausalLM, LlamaForCausalLM):
        try:
            loader.from_pretrained(folder)
        except Exception as error:
            print(error)
model = AutoModelForCausalLM.from_pretrained({str(tied)!r}, trust_remote_code=True)
print(model.is_quantized)
"""
    *lines, is_quantized = printed(code).splitlines()
    assert len(lines) == 6
    assert all("import dpq_llama first" in line for line in lines)
    assert is_quantized == "True"


def test_the_mark_keeps_every_activation_apart_and_is_undone():
    assert MARK.add("silu") != MARK.add("gelu") != "gelu"
    assert MARK.remove(MARK.add("silu")) == MARK.remove("silu") == "silu"
    assert MARK.add(MARK.add("silu")) == MARK.add("silu")


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_pytorch_tanh"])
def test_models_with_another_activation_keep_it(activation, make_folder, make_artifact):
    from transformers import AutoModelForCausalLM

    source = make_folder(hidden_act=activation)
    expected = AutoModelForCausalLM.from_pretrained(source).model.layers[0].mlp.act_fn
    model = AutoModelForCausalLM.from_pretrained(make_artifact(source))
    assert type(model.model.layers[0].mlp.act_fn) is type(expected)


def test_the_config_says_all_that_the_loader_needs(tied):
    config = json.loads((tied / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "dpq"
    assert len(quantization["specs"]) == 3  # the blocks, down_proj without an order, the embedding
    assert len(quantization["tensors"]) == 2 * 7 + 1
    card = (tied / "README.md").read_text()
    assert card.split("---\n", 2)[2].startswith("\n# `import dpq_llama` first\n")
