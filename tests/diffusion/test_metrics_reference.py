"""Reference files: what is refused, and how it is said."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dpq_core.errors import SourceError
from dpq_diffusion.evaluation.reference import read_reference
from dpq_diffusion.sampling.npz import write_arrays


def valid():
    """An ADM reference batch in small: 9 pooled and 5 spatial dimensions."""
    return {
        "arr_0": np.zeros((4, 8, 8, 3), np.uint8),
        "mu": np.ones(9),
        "sigma": np.eye(9),
        "mu_s": np.ones(5, np.float32),
        "sigma_s": np.eye(5, dtype=np.float32),
    }


def test_a_valid_batch(tmp_path):
    write_arrays(tmp_path / "ref.npz", valid())
    found = read_reference(tmp_path / "ref.npz")
    assert (found.name, len(found.images)) == ("ref.npz", 4)
    assert found.statistics.pool.covariance.dtype == torch.float64
    assert torch.equal(found.statistics.spatial.covariance, torch.eye(5).double())


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"mu": np.full(9, np.nan)}, "'mu', 'sigma': the mean or covariance of features holds NaN"),
        ({"mu": np.ones(8)}, "have shapes [8] and [9, 9]; expected [D] and [D, D]"),
        ({"mu": np.ones((1, 9))}, "expected [D] and [D, D]"),
        ({"sigma": None}, "holds 'mu' but not the whole pair (mu and sigma)"),
        ({"sigma": np.triu(np.ones((9, 9)))}, "not a covariance"),
        ({"sigma": -np.eye(9)}, "negative variance"),
        ({"sigma": np.eye(9, dtype=np.int64)}, "'sigma' is int64; expected floating point"),
        ({"mu": None, "sigma": None}, "holds neither images"),
        ({"mu_s": np.full(5, np.inf)}, "'mu_s', 'sigma_s': the mean"),
        ({"arr_0": np.zeros((4, 8, 8, 3), np.float32)}, "dtype float32; expected uint8"),
    ],
    ids=[
        "nan",
        "length",
        "rank",
        "half",
        "asymmetric",
        "negative",
        "integers",
        "spatial-only",
        "infinite",
        "float-images",
    ],
)
def test_impossible_statistics_are_refused(tmp_path, replaced, message):
    path = tmp_path / "ref.npz"
    arrays = valid() | replaced
    write_arrays(path, {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(SourceError, match=re.escape(message)) as caught:
        read_reference(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, None, "not reference statistics"),
        ({}, {"extractor": ""}, "not reference statistics"),
        ({}, {"format": "dpq-reference-9"}, "not reference statistics"),
        ({"surplus": torch.ones(2)}, {}, "unknown content ['surplus']"),
        ({}, {"count": "many"}, "unknown content 'many'"),
        ({"mu": None, "sigma": None}, {}, "holds no 'mu' and 'sigma'"),
        ({"mu": torch.ones(2, dtype=torch.int64)}, {}, "'mu' is torch.int64; expected floats"),
        ({"features": torch.ones(4, 3)}, {}, "'features' has shape [4, 3]; expected [N, 2]"),
        ({"features": torch.full((4, 2), torch.nan)}, {}, "'features' holds NaN"),
    ],
    ids=["bare", "nameless", "version", "tensor", "count", "empty", "dtype", "shape", "nan"],
)
def test_foreign_safetensors_are_refused(tmp_path, tensors, metadata, message):
    path = tmp_path / "ref.safetensors"
    content = {"mu": torch.ones(2), "sigma": torch.eye(2)} | tensors
    known = {"format": "dpq-reference-1", "extractor": "linear", "count": "9"}
    save_file(
        {name: tensor for name, tensor in content.items() if tensor is not None},
        path,
        None if metadata is None else known | metadata,
    )
    with pytest.raises(SourceError, match=re.escape(message)):
        read_reference(path)


def test_unreadable_references(tmp_path):
    with pytest.raises(SourceError, match="no such reference"):
        read_reference(tmp_path / "absent.npz")
    (tmp_path / "ref.pt").write_bytes(b"")
    with pytest.raises(SourceError, match=r"a reference is an ADM \.npz"):
        read_reference(tmp_path / "ref.pt")
    (tmp_path / "ref.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(SourceError, match="not a readable safetensors file"):
        read_reference(tmp_path / "ref.safetensors")
