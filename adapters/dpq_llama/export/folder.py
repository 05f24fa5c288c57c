"""A model as a folder in the Hugging Face layout, which loads without dpq."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from dpq_core.artifact import shards
from dpq_core.artifact.files import making_folder
from dpq_core.artifact.header import tensor_bytes
from dpq_core.errors import SpecError
from dpq_core.plugin.results import Export
from dpq_core.run import Run
from dpq_core.sizes import parse_size
from dpq_core.tensor.plan import Plan, TensorPlan
from dpq_llama.export.source import DenseSource
from dpq_llama.source.checkpoint import CONFIG, WEIGHTS

_STEM = WEIGHTS.removesuffix(".safetensors")


def write_folder(source: DenseSource, out: Path, shard_size: str, run: Run) -> Export:
    """Write config, side files and dense weights; one tensor is in memory at a time.

    Args:
        source: the model.
        out: the folder, which appears whole or not at all.
        shard_size: largest size of the tensors in one weight file.
        run: its progress counts bytes of tensors.

    Raises:
        SpecError: ``out`` is a file, or a folder of something else.
        ArtifactError: a tensor is damaged, or the disk refused.
    """
    _check_replaceable(out)
    plan = Plan(tuple(TensorPlan(name=name, info=info) for name, info in source.tensors.items()))
    layout = shards.lay_out(plan, {"": _STEM}, parse_size(shard_size))
    done = 0

    def read(name: str) -> Tensor:
        nonlocal done
        run.progress("export", done, source.nbytes)
        done += source.tensors[name].nbytes
        return source.read(name)

    with making_folder(out, replace=True) as partial:
        for name, path in source.side_files.items():
            shutil.copyfile(path, partial / name)
        (partial / CONFIG).write_text(json.dumps(source.config, indent=2) + "\n", "utf-8")
        for shard in layout:
            _write_shard(partial / shard.file, shard, read)
        if len(layout) > 1:
            (partial / f"{_STEM}{shards.INDEX_SUFFIX}").write_bytes(shards.index_bytes(layout))
        names = sorted(path.name for path in partial.iterdir())
    run.progress("export", source.nbytes, source.nbytes)
    return Export(files=tuple(out / name for name in names))


def _check_replaceable(out: Path) -> None:
    """Refuse to replace what is neither an empty folder nor a model's."""
    if out.exists() and not out.is_dir():
        raise SpecError(f"{out}: exists and is not a folder; choose another name")
    if out.is_dir() and any(out.iterdir()) and not (out / CONFIG).is_file():
        raise SpecError(f"{out}: exists and is not a model's folder; choose another name")


def _write_shard(path: Path, shard: shards.Shard, read: Callable[[str], Tensor]) -> None:
    """Write one weight file, tensor after tensor."""
    with path.open("wb") as file:
        file.write(shard.header)
        for name in shard.tensors:
            file.write(tensor_bytes(read(name)))
        file.flush()
        os.fsync(file.fileno())
