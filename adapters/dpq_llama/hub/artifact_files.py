"""The files that dpq generates beside the weights: config, model card, loader stub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dpq_hf.model_card import model_card
from dpq_hf.stored_config import config_of_manifest
from dpq_llama.hub.registration import MARK
from dpq_llama.source.architecture import model_class
from dpq_llama.source.checkpoint import CONFIG, LlamaCheckpoint
from dpq_llama.source.guard import with_activation

if TYPE_CHECKING:
    from dpq_core.artifact import Manifest

STUB = "modeling_dpq.py"

_STUB_TEXT = '''\
"""Loads this model with trust_remote_code=True; ``pip install dpq[llama]`` provides dpq_llama.

Without trust_remote_code, write ``import dpq_llama`` before ``from_pretrained`` instead.
"""

import dpq_llama  # registers the quantizer "dpq"
from transformers import CLASS


class DPQCLASS(CLASS):
    pass
'''


def generated_files(checkpoint: LlamaCheckpoint, manifest: Manifest) -> dict[str, bytes]:
    """``config.json``, ``README.md`` and the loader stub of an artifact."""
    config = artifact_config(checkpoint, manifest)
    return {
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        "README.md": _model_card(checkpoint, manifest).encode(),
        STUB: _STUB_TEXT.replace("CLASS", _class_name(checkpoint)).encode(),
    }


def artifact_config(checkpoint: LlamaCheckpoint, manifest: Manifest) -> dict[str, Any]:
    """The config of the source with what the loader needs.

    The activation carries the mark that makes every loader without dpq_llama fail (see
    ``dpq_llama.hub.registration``). ``specs`` and ``tensors`` let a model load too that
    transformers saved again, without the manifest.
    """
    config = dict(checkpoint.config)
    config = MARK.add_to_json(with_activation(config, checkpoint.model.config))
    stored = next(iter(checkpoint.tensors.values())).dtype
    dtype = config.get("dtype") or config.get("torch_dtype") or str(stored).removeprefix("torch.")
    config["dtype"] = dtype
    remote = f"{STUB.removesuffix('.py')}.DPQ{_class_name(checkpoint)}"
    config["auto_map"] = {"AutoModelForCausalLM": remote}
    config["quantization_config"] = {
        "quant_method": "dpq",
        **config_of_manifest(manifest),
        **_shapes(checkpoint, manifest),
        **({"transposed": sorted(checkpoint.transposed)} if checkpoint.transposed else {}),
        "dtype": dtype,
    }
    return config


def _class_name(checkpoint: LlamaCheckpoint) -> str:
    """Name of the class of transformers for the model with its language-model head."""
    name: str = model_class(checkpoint.model.config, checkpoint.source).__name__
    return name


def _shapes(checkpoint: LlamaCheckpoint, manifest: Manifest) -> dict[str, dict[str, list[int]]]:
    """``shapes`` of the quantized tensors that transformers joins or splits, where there are any.

    All others have the shapes of the model's parameters.
    """
    joined = {
        entry.name: list(entry.shape)
        for entry in manifest.tensors
        if entry.spec is not None and not checkpoint.layers.names.is_whole(entry.name)
    }
    return {"shapes": joined} if joined else {}


def _model_card(checkpoint: LlamaCheckpoint, manifest: Manifest) -> str:
    return model_card(
        checkpoint,
        manifest,
        folder=checkpoint.folder,
        package="dpq_llama",
        library="transformers",
        task="text-generation",
        sentence=f"This is {manifest.source}, product-quantized by dpq. Without that import "
        "transformers refuses it.",
        example="""\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH-OR-ID")
tokenizer = AutoTokenizer.from_pretrained("PATH-OR-ID")""",
        more=_USES,
        row="this model",
    )


_USES = """\
## Run and serve

```bash
dpq sample PATH-OR-ID --prompt "Once upon a time"
dpq serve PATH-OR-ID  # OpenAI-compatible, needs pip install "dpq[serve]"
```

## Train

Adapters of peft train around the codes, which stay as they are.

```python
from peft import LoraConfig, get_peft_model

model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
```

"""
"""Sections of the card on how to run, serve and train a language model."""
