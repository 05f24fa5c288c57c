"""Quantize any torch module, with statistics of its inputs; save it and load it again."""

import torch
from torch import nn

import dpq
from dpq_core.data.statistics import collect


def build() -> nn.Sequential:
    """The module as it is before it is quantized."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 384), nn.GELU(), nn.Linear(384, 128))


data = torch.randn(512, 16) @ torch.randn(16, 128)  # correlated inputs, as real ones are
model = build()
inputs = collect(model, ["0", "2"], lambda: model(data))  # second moments of what layers see
spec = dpq.QuantSpec.preset(2, assignment={"method": "ldlq+icm"})
report = dpq.quantize_(model, spec, statistics=inputs)
for path, done in report.items():
    print(f"{path}: {done.bits_per_weight:.2f} bits per weight, error {done.relative_error:.3f}")

dpq.save(model, "module.safetensors")
again = dpq.load_into(build(), "module.safetensors")
assert torch.equal(again(data), model(data))
