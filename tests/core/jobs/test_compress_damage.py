"""Damaged tensors are refused by name also where they are kept as they are."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from toy_adapter import MLPAdapter

from dpq_core.errors import SpecError
from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.spec import QuantSpec

SPEC = QuantSpec.preset(2, K=16, kmeans={"iterations": 1, "tail": 0})


def run(tmp_path, dtype=torch.float32, **kept):
    """Compress a perceptron that has further tensors, which nobody quantizes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"w1": (32, 64), "b1": (32,), "w2": (40, 32)}
    tensors = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    for name, value in kept.items():
        tensors[name.replace("__", ".")] = torch.tensor([1.0, value]).to(dtype)
    save_file(tensors, tmp_path / "net.safetensors")
    options = CompressOptions(probe=False)
    return compress(
        MLPAdapter(), str(tmp_path / "net.safetensors"), tmp_path / "out", SPEC, options=options
    )


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["norm__weight", "norm__bias", "mask"])
def test_nan_in_a_kept_tensor(name, dtype, tmp_path):
    with pytest.raises(SpecError, match=r"holds NaN or infinite values; repair") as caught:
        run(tmp_path, dtype, **{name: math.nan})
    assert name.replace("__", ".") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("name", ["norm__weight", "norm__bias"])
def test_infinity_in_a_kept_parameter(name, value, tmp_path):
    with pytest.raises(SpecError, match=rf"{name.replace('__', '.')}' holds NaN or infinite"):
        run(tmp_path, **{name: value})


def test_masks_may_be_made_of_infinities(tmp_path):
    report = run(tmp_path, mask=-math.inf, least=math.inf)
    assert {"mask", "least"} <= {tensor.name for tensor in report.tensors}


def test_empty_and_whole_numbers_are_not_looked_at(tmp_path):
    tensors = {"w1": torch.ones(32, 64), "b1": torch.ones(32), "w2": torch.ones(40, 32)}
    tensors |= {"steps.weight": torch.tensor(3), "empty.weight": torch.ones(0)}
    save_file(tensors, tmp_path / "net.safetensors")
    compress(MLPAdapter(), str(tmp_path / "net.safetensors"), tmp_path / "out", SPEC)
    assert (tmp_path / "out").is_dir()
