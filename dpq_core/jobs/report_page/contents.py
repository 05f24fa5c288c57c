"""The contents of an artifact for a report: bytes by part, and every layer's bits and error."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dpq_core.artifact import Artifact, ArtifactFile
from dpq_core.jobs.inspect import inspect
from dpq_core.jobs.request import open_artifact
from dpq_core.run import Run
from dpq_core.tensor.pq_tensor import PQTensor, book_of_group

KEPT = "kept tensors"
REST = "other files, headers"

_BLOCK = re.compile(r"^(.*?)\.?(\d+)\.")
"""The first number in a tensor's name, which counts its block."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One tensor of a model, or one attribute of a scene.

    Attributes:
        name: name of the tensor or attribute.
        block: the block that it belongs to, such as ``model.layers 3``; else ``other``.
        shape: shape as text.
        nbytes: stored bytes.
        bits: stored bits per weight, or per item of a scene.
        error: relative error of the stored values, or None.
        code_bits: bits of one code; None where there are no codewords.
        entropy: entropy of the codes in bits, at most ``code_bits``; the mean of its codebooks.
        unused: share of the codewords that no code names.
    """

    name: str
    block: str
    shape: str
    nbytes: int
    bits: float
    error: float | None = None
    code_bits: int | None = None
    entropy: float | None = None
    unused: float | None = None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What an artifact holds.

    Attributes:
        path: folder or file of the artifact.
        nbytes: size on disk in bytes.
        facts: names and values that describe it.
        parts: kind of stored part -> bytes, the largest first; they sum up to ``nbytes``.
        blocks: block -> kind of part -> bytes, in the order of the model.
        layers: all tensors or attributes, in the order of the model.
        unit: what ``Layer.bits`` are per.
    """

    path: str
    nbytes: int
    facts: tuple[tuple[object, ...], ...]
    parts: Mapping[str, int]
    blocks: Mapping[str, Mapping[str, int]]
    layers: tuple[Layer, ...]
    unit: str = "weight"


def read_contents(source: str, run: Run) -> Contents:
    """What an artifact holds; its codes are read, and counted.

    Raises:
        ArtifactError: the artifact is missing, half-written, damaged or hostile.
    """
    artifact = open_artifact(source)
    report = inspect(artifact.path, run=run)
    facts = report.tables()[0].rows
    if isinstance(artifact, ArtifactFile):
        return _of_file(artifact, report.contents(), facts)
    return _of_folder(artifact, facts, run)


def _of_folder(artifact: Artifact, facts: tuple[tuple[object, ...], ...], run: Run) -> Contents:
    manifest = artifact.manifest
    parts: Counter[str] = Counter()
    blocks: dict[str, Counter[str]] = defaultdict(Counter)
    layers = []
    for i, entry in enumerate(manifest.tensors):
        run.progress("read", i, len(manifest.tensors))
        block, sizes = _block(entry.name), Counter[str]()
        for part, (dtype, shape) in manifest.stored(entry).items():
            kind = KEPT if entry.spec is None else part[len(entry.name) + 1 :].replace("_", " ")
            sizes[kind] += dtype.itemsize * math.prod(shape)
        parts += sizes
        blocks[block] += sizes
        usage: dict[str, Any] = {}
        if entry.spec is not None and not manifest.specs[entry.spec].trellis_rate:
            usage = _usage(artifact.read_pq(entry.name))
        nbytes = sum(sizes.values())
        layers.append(
            Layer(
                name=entry.name,
                block=block,
                shape="x".join(map(str, entry.shape)),
                nbytes=nbytes,
                bits=8 * nbytes / max(1, math.prod(entry.shape)),
                error=entry.relative_error,
                **usage,
            )
        )
    run.progress("read", len(layers), len(layers))
    parts[REST] = artifact.nbytes - sum(parts.values())
    return Contents(
        path=str(artifact.path),
        nbytes=artifact.nbytes,
        facts=facts,
        parts=dict(parts.most_common()),
        blocks=blocks,
        layers=tuple(layers),
    )


def _of_file(
    file: ArtifactFile, values: Mapping[str, Any], facts: tuple[tuple[object, ...], ...]
) -> Contents:
    layers = tuple(
        Layer(
            name=attribute["name"],
            block=attribute["name"],
            shape="x".join(map(str, attribute["shape"])) or "number",
            nbytes=attribute["nbytes"],
            bits=attribute["bits_per_item"],
            error=next(iter(attribute["errors"].values()), None),
        )
        for attribute in values["attributes"]
    )
    parts = Counter({layer.name: layer.nbytes for layer in layers})
    parts[REST] = file.nbytes - sum(parts.values())
    return Contents(
        path=str(file.path),
        nbytes=file.nbytes,
        facts=facts,
        parts=dict(parts.most_common()),
        blocks={},
        layers=layers,
        unit="item",
    )


def _block(name: str) -> str:
    """The block that a tensor belongs to, by the first number in its name."""
    match = _BLOCK.match(name)
    return f"{match[1]} {match[2]}".strip() if match else "other"


def _usage(tensor: PQTensor) -> dict[str, Any]:
    """Bits of a code, entropy of the codes, and share of the codewords that none names."""
    p = tensor.partition
    books = book_of_group(p, tensor.stored)
    count = int(books.max()) + 1
    counts = torch.zeros(p.stages * count, p.K, dtype=torch.int64)
    for stage in range(p.stages):
        for group, book in enumerate(books.tolist()):
            codes = tensor.codes_of(stage * p.groups + group)
            counts[stage * count + book] += torch.bincount(codes.long(), minlength=p.K)
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    entropies = torch.special.entr(shares).sum(dim=1) / math.log(2)
    return {
        "code_bits": p.code_bits,
        "entropy": float(entropies.mean()),
        "unused": float((counts == 0).double().mean()),
    }
