"""A loaded 2-bit model must not hold its weights dense, before or after it has run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dpq_core.jobs.compress import CompressOptions

TRANSIENT = 192e6
"""Bytes that a forward pass may leave with the allocator: a few copies of one decoded chunk."""

MEASURE = """
import json, sys
import psutil, torch
import dpq_llama
from dpq_llama.hub import quantizer  # its imports are not part of the model
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from dpq_core.kernels.cpu import lut
torch.set_num_threads(1)
process = psutil.Process()
before = process.memory_info().rss
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
for tensor in (*model.parameters(), *model.buffers()):
    tensor.view(torch.uint8).max()  # touches every mapped page, and allocates nothing
loaded = process.memory_info().rss - before
with torch.no_grad():
    model(torch.arange(16)[None])
ran = process.memory_info().rss - before
print(json.dumps({"loaded": loaded, "ran": ran}))
"""


@pytest.mark.slow
def test_a_two_bit_model_takes_less_than_two_fifths_of_the_memory(make_folder, make_artifact):
    import torch

    source = make_folder(
        dtype=torch.bfloat16,
        vocab_size=8000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=6,
        num_attention_heads=16,
    )
    artifact = make_artifact(source, K=256, options=CompressOptions(probe=False))
    used = {}
    for folder in (source, artifact):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(folder)], capture_output=True, text=True, check=True
        )
        used[folder] = json.loads(done.stdout)
    assert used[source]["loaded"] > 140e6  # 93 million weights: the measurement works
    assert used[artifact]["loaded"] < 0.4 * used[source]["loaded"]
    # What a forward pass decodes at a time does not grow with the model.
    assert used[artifact]["ran"] - used[artifact]["loaded"] < TRANSIENT
