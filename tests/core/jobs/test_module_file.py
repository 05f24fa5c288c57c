"""``dpq.save`` and ``dpq.load_into``: any quantized module, bit for bit, and no hostile file."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from torch import nn

import dpq
from dpq_core.errors import ArtifactError
from dpq_core.spec import Override


class Net(nn.Module):
    """An embedding tied to a head, a convolution, an MLP, a norm and a buffer."""

    def __init__(self, hidden: int = 96) -> None:
        super().__init__()
        self.embedding = nn.Embedding(80, 64)
        self.conv = nn.Conv2d(1, 64, 8)
        self.mlp = nn.Sequential(nn.Linear(64, hidden), nn.GELU(), nn.Linear(hidden, 64))
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 80, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("offset", torch.arange(64.0))

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        x = self.embedding(index) + self.offset
        x = x + self.conv(x[:, None, None, :].expand(-1, 1, 8, -1))[..., 0, 0][:, :64]
        return self.head(self.norm(self.mlp(x)))


def make(seed: int = 0, **sizes: int) -> Net:
    torch.manual_seed(seed)
    return Net(**sizes)


INDEX = torch.arange(20)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = make()
    rules = [Override("mlp.0*", {"d": 2, "K": 32}), Override("mlp.2*", {"codebook_dtype": "int8"})]
    dpq.quantize_(model, dpq.QuantSpec(d=4, K=16), overrides=rules)
    path = dpq.save(model, tmp_path_factory.mktemp("saved") / "m.safetensors")
    return model, path


def test_a_round_trip_gives_the_same_bits(saved):
    model, path = saved
    loaded = dpq.load_into(make(seed=1), path)
    assert [type(m) for m in loaded.modules()] == [type(m) for m in model.modules()]
    with torch.no_grad():
        assert torch.equal(loaded(INDEX), model(INDEX))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.head.weight is loaded.embedding.weight  # shared weights stay shared


def test_saving_what_was_loaded_gives_the_same_file(saved, tmp_path):
    _, path = saved
    again = dpq.save(dpq.load_into(make(seed=2), path), tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()
    assert list(tmp_path.iterdir()) == [again]


def test_shared_tensors_are_stored_once_and_less_than_the_dense_model(saved):
    _, path = saved
    dense = sum(p.numel() * 4 for p in make().parameters())
    assert path.stat().st_size < dense / 2
    header = _header(path)
    assert "embedding.weight.codes" in header
    assert "head.weight.codes" not in header


def test_a_module_that_is_not_quantized_can_be_saved_too(tmp_path):
    model = make()
    path = dpq.save(model, tmp_path / "m.safetensors")
    assert torch.equal(dpq.load_into(make(seed=1), path)(INDEX), model(INDEX))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(64, 96)), "the module has no .*another model"),
        (lambda: make(hidden=128), r"mlp\.0\.weight.* is linear .*another model"),
        (lambda: nn.ModuleDict({"net": make()}), "the module has no "),
    ],
    ids=["names", "shape", "prefix"],
)
def test_another_model_is_refused_and_left_as_it_was(saved, other, message):
    _, path = saved
    model = other()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ArtifactError, match=message):
        dpq.load_into(model, path)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _header(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def _with(path, out, change):
    """A copy whose metadata was changed."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    said = json.loads(header["__metadata__"]["dpq_module"])
    change(said, header)
    header["__metadata__"]["dpq_module"] = json.dumps(said)
    body = json.dumps(header).encode()
    body += b" " * (-len(body) % 8)
    out.write_bytes(struct.pack("<Q", len(body)) + body + data[8 + length :])
    return out


HOSTILE = {
    "version": (lambda s, h: s.update(version=2), "version 2 is not known"),
    "bool-version": (lambda s, h: s.update(version=True), "is not known"),
    "unknown-key": (lambda s, h: s.update(more=1), "more"),
    "no-spec": (lambda s, h: s["weights"][0].update(spec=7), "spec 7 does not exist"),
    "kept": (lambda s, h: s["weights"][0].update(spec=None, layout=None), "no quantized weight"),
    "shape": (lambda s, h: s["weights"][0].update(shape=[10**9, 10**9]), "."),
    "twice": (lambda s, h: s["weights"].append(s["weights"][0]), "same name"),
    "circle": (lambda s, h: s["shared"].update(a="b", b="a"), "circle"),
    "nowhere": (lambda s, h: s["shared"].update(a="b"), "not there"),
    "layout": (lambda s, h: s["weights"][0].update(layout="cube"), "unknown layout"),
    "spec-d": (lambda s, h: s["specs"][0].update(d=-1), "spec 0"),
    "gone": (lambda s, h: h["__metadata__"].update(other="1"), "other"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_line(saved, tmp_path, case):
    change, message = HOSTILE[case]
    path = _with(saved[1], tmp_path / "bad.safetensors", change)
    with pytest.raises(ArtifactError, match=message) as caught:
        dpq.load_into(make(), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_a_cut_file_is_refused(saved, tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(saved[1].read_bytes()[:keep])
    with pytest.raises(ArtifactError):
        dpq.load_into(make(), path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ArtifactError, match="cannot read"):
        dpq.load_into(make(), tmp_path / "none.safetensors")


def test_an_interrupted_save_leaves_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"mine")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dpq_core.jobs.module_file.write_all", fail)
    with pytest.raises(ArtifactError, match="No space left"):
        dpq.save(saved[0], path)
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]
