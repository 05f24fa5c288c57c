"""A tiny model of literal tensors for the artifact tests: every layout, dtype and corner."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from dpq_core.artifact import Artifact, ArtifactWriter
from dpq_core.checkpoint import TensorInfo
from dpq_core.layout import Layout
from dpq_core.packing import pack
from dpq_core.partition import Partition
from dpq_core.plan import Plan, TensorPlan
from dpq_core.spec import KMeansSpec, QuantSpec

# Every field is given: the golden bytes must not follow a default.
EXPLICIT = {
    "codebook_share": 0.125,
    "kmeans": KMeansSpec(iterations=20, tail=2, noise_power=0.5, init="random"),
    "seed": 0,
}
LINEAR = QuantSpec(
    d=4, K=4, scope="subspace", orientation="input", conv_layout="spatial", row_scale=True,
    codebook_dtype="float16", **EXPLICIT,
)  # fmt: skip
CONV = QuantSpec(
    d=3, K=3, scope=2, orientation="output", conv_layout="channel", row_scale=False,
    codebook_dtype="float16", **EXPLICIT,
)  # fmt: skip
EMBEDDING = QuantSpec(
    d=2, K=300, scope="tensor", orientation="input", conv_layout="spatial", row_scale=True,
    codebook_dtype="float32", **EXPLICIT,
)  # fmt: skip
SIDE_FILES = {"config.json": b'{"model_type": "tiny"}\n', "vae/model.safetensors": b"opaque"}


def tiny_plan() -> Plan:
    """Eight tensors: quantized linear (padded), conv, embedding, and kept ones of odd kinds."""

    def quantized(name: str, shape: list[int], dtype: str, layout: Layout, spec: QuantSpec):
        info = TensorInfo(tuple(shape), getattr(torch, dtype))
        partition = Partition.of(info.shape, layout, spec)
        return TensorPlan(name=name, info=info, spec=spec, partition=partition)

    def kept(name: str, shape: list[int], dtype: str):
        return TensorPlan(name=name, info=TensorInfo(tuple(shape), getattr(torch, dtype)))

    return Plan(
        (
            quantized("embed.weight", [5, 6], "float32", Layout.EMBEDDING, EMBEDDING),
            quantized("block.0.weight", [6, 10], "bfloat16", Layout.LINEAR, LINEAR),
            kept("block.0.bias", [6], "bfloat16"),
            quantized("block.1.weight", [4, 3, 2, 2], "float16", Layout.CONV, CONV),
            kept("mask", [3], "bool"),
            kept("steps", [], "int64"),
            kept("empty", [0, 3], "float32"),
            kept("head.weight", [2, 3], "float32"),
        )
    )


def stored_of(tensor: TensorPlan) -> dict[str, Tensor]:
    """Literal contents by arithmetic: code i is i mod K, codeword values count up in eighths."""
    result = {}
    for name, (dtype, shape) in tensor.stored().items():
        count = torch.Size(shape).numel()
        ramp = torch.arange(count, dtype=torch.float64).reshape(shape)
        if name.endswith(".codes") and tensor.partition is not None:
            p = tensor.partition
            codes = (torch.arange(p.groups * p.points) % p.K).reshape(p.groups, p.points)
            result[name] = pack(codes.int(), p.code_bits)
        elif name.endswith(".row_scale"):
            result[name] = (1 + ramp / 4).to(dtype)
        else:
            result[name] = (ramp % 2 if dtype == torch.bool else ramp / 8 - 1).to(dtype)
    return result


def make_writer(out: Path, plan: Plan | None = None, **options) -> ArtifactWriter:
    """A writer of the tiny model; options go to the constructor."""
    names = {"adapter": "tiny", "source": "builtin:tiny", "fingerprint": "f0"}
    return ArtifactWriter(out, plan or tiny_plan(), **{**names, **options})


def write_tiny(out: Path, **options) -> Artifact:
    """Write (or resume) the whole tiny model."""
    plan = tiny_plan()
    with make_writer(out, plan, **options) as writer:
        for index, tensor in enumerate(plan):
            if tensor.name not in writer.done:
                error = index / 64 if tensor.spec else None
                writer.write(tensor.name, stored_of(tensor), error)
        for name, content in SIDE_FILES.items():
            writer.add_file(name, content)
        return writer.finish()


def snapshot(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of everything in a folder; ``/`` for a folder."""
    return {
        path.relative_to(folder).as_posix(): "/"
        if path.is_dir()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
    }
