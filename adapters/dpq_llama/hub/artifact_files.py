"""The files that dpq generates beside the weights: config, model card, loader stub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dpq_hf.model_card import model_card
from dpq_hf.stored_config import config_of_manifest
from dpq_llama.hub.registration import MARK
from dpq_llama.source.checkpoint import CONFIG, LlamaCheckpoint

if TYPE_CHECKING:
    from dpq_core.artifact import Manifest

STUB = "modeling_dpq.py"

_STUB_TEXT = b'''\
"""Loads this model with trust_remote_code=True; ``pip install dpq[llama]`` provides dpq_llama.

Without trust_remote_code, write ``import dpq_llama`` before ``from_pretrained`` instead.
"""

import dpq_llama  # registers the quantizer "dpq"
from transformers import LlamaForCausalLM


class DPQLlamaForCausalLM(LlamaForCausalLM):
    pass
'''


def generated_files(checkpoint: LlamaCheckpoint, manifest: Manifest) -> dict[str, bytes]:
    """``config.json``, ``README.md`` and the loader stub of an artifact."""
    config = artifact_config(checkpoint, manifest)
    return {
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        "README.md": _model_card(checkpoint, manifest).encode(),
        STUB: _STUB_TEXT,
    }


def artifact_config(checkpoint: LlamaCheckpoint, manifest: Manifest) -> dict[str, Any]:
    """The config of the source with what the loader needs.

    ``hidden_act`` carries the mark that makes every loader without dpq_llama fail (see
    ``dpq_llama.hub.registration``). ``specs`` and ``tensors`` let a model load too that
    transformers saved again, without the manifest.
    """
    config = dict(checkpoint.config)
    config["hidden_act"] = MARK.add(config.get("hidden_act", "silu"))
    stored = next(iter(checkpoint.tensors.values())).dtype
    dtype = config.get("dtype") or config.get("torch_dtype") or str(stored).removeprefix("torch.")
    config["dtype"] = dtype
    config["auto_map"] = {"AutoModelForCausalLM": f"{STUB.removesuffix('.py')}.DPQLlamaForCausalLM"}
    config["quantization_config"] = {
        "quant_method": "dpq",
        **config_of_manifest(manifest),
        "dtype": dtype,
    }
    return config


def _model_card(checkpoint: LlamaCheckpoint, manifest: Manifest) -> str:
    return model_card(
        checkpoint,
        manifest,
        package="dpq_llama",
        sentence=f"This is {manifest.source}, product-quantized by dpq. Without that import "
        "transformers refuses it.",
        example="""\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH-OR-ID")
tokenizer = AutoTokenizer.from_pretrained("PATH-OR-ID")""",
        row="this model",
    )
