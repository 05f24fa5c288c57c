"""A tiny model of literal tensors for the artifact tests: every layout, dtype and corner."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from dpq_core.artifact import Artifact, ArtifactWriter, DataEntry
from dpq_core.spec import AssignmentSpec, KMeansSpec, PoolSpec, QuantSpec
from dpq_core.tensor.checkpoint import TensorInfo
from dpq_core.tensor.packing import pack
from dpq_core.tensor.partition import Layout, Partition
from dpq_core.tensor.plan import Plan, TensorPlan

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
ADDED = {
    "stages": 1, "group_scale": False, "permute": False, "transform": "none", "pool": PoolSpec(),
    "assignment": AssignmentSpec(method="ldlq+icm", sweeps=2, damping=0.01, updates=1, beam=4),
}  # fmt: skip
STAGES = LINEAR.replace(**ADDED | {"stages": 2, "group_scale": True, "codebook_dtype": "int8"})
POOL = LINEAR.replace(
    **ADDED
    | {"pool": PoolSpec(method="greedy", size=5, tau=0.05, refine=6, packed=True), "permute": True}
)
INT8_POOL = CONV.replace(
    **ADDED
    | {"pool": PoolSpec(method="wkmeans", size=3, tau=0.05, refine=6, packed=False)}
    | {"codebook_dtype": "int8"}
)
ROTATED = LINEAR.replace(**ADDED | {"transform": "rht"})
TABLE = EMBEDDING.replace(**ADDED | {"transform": "rht"})
DATA = (
    DataEntry.of("compress", "64 windows of 512 tokens", "a"),
    DataEntry.of("calibrate", 'texts called "é"', "b"),
)
SIDE_FILES = {"config.json": b'{"model_type": "tiny"}\n', "vae/model.safetensors": b"opaque"}


def quantized(name: str, shape: list[int], dtype: str, layout: Layout, spec: QuantSpec):
    """The plan of one quantized tensor."""
    info = TensorInfo(tuple(shape), getattr(torch, dtype))
    partition = Partition.of(info.shape, layout, spec)
    return TensorPlan(name=name, info=info, spec=spec, partition=partition)


def tiny_plan_2() -> Plan:
    """What came with version 2: stages, eight bits, pools, scales, orders and rotations."""
    return Plan(
        (
            quantized("table.weight", [5, 12], "float32", Layout.EMBEDDING, TABLE),
            quantized("stages.weight", [6, 10], "bfloat16", Layout.LINEAR, STAGES),
            quantized("pool.weight", [6, 10], "float32", Layout.LINEAR, POOL),
            quantized("conv.weight", [4, 3, 2, 2], "float16", Layout.CONV, INT8_POOL),
            quantized("rotated.weight", [6, 20], "float32", Layout.LINEAR, ROTATED),
            quantized("plain.weight", [6, 10], "float32", Layout.LINEAR, LINEAR),
        )
    )


def tiny_plan() -> Plan:
    """Eight tensors: quantized linear (padded), conv, embedding, and kept ones of odd kinds."""

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
            lines = p.stages * p.groups
            codes = (torch.arange(lines * p.points) % p.K).reshape(lines, p.points)
            result[name] = pack(codes.int(), p.code_bits)
        elif name.endswith(".index_map") and tensor.partition is not None:
            p = tensor.partition
            index = (torch.arange(p.codebooks * p.K) % p.pool).reshape(p.codebooks, p.K)
            result[name] = pack(index.int(), p.index_bits)
        elif name.endswith(".permutation") and tensor.partition is not None:
            order = torch.arange(tensor.partition.cols).flip(0)[None].int()
            result[name] = pack(order, 4)[0]  # ten columns
        elif name.endswith("_scale"):
            result[name] = (1 + ramp / 4).to(dtype)
        elif dtype == torch.int8:
            result[name] = (ramp - 16).to(dtype)
        elif ".signs_" in name:
            result[name] = (ramp * 91 + 37).to(dtype)
        else:
            result[name] = (ramp % 2 if dtype == torch.bool else ramp / 8 - 1).to(dtype)
    return result


def make_writer(out: Path, plan: Plan | None = None, **options) -> ArtifactWriter:
    """A writer of the tiny model; options go to the constructor."""
    names = {"adapter": "tiny", "source": "builtin:tiny", "fingerprint": "f0"}
    return ArtifactWriter(out, plan or tiny_plan(), **{**names, **options})


def write_tiny(out: Path, plan: Plan | None = None, **options) -> Artifact:
    """Write (or resume) a whole tiny model."""
    plan = plan or tiny_plan()
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
