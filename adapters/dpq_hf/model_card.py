"""The ``README.md`` of an artifact: how to load it, its size, and how it was quantized."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]  # no type information

from dpq_hf.sources import config_of, is_hub_id

if TYPE_CHECKING:
    from dpq_core.artifact import Manifest
    from dpq_core.tensor.checkpoint import Checkpoint


def model_card(
    checkpoint: Checkpoint,
    manifest: Manifest,
    *,
    folder: Path,
    package: str,
    library: str,
    task: str,
    sentence: str,
    example: str,
    more: str,
    row: str,
    counted: str = "",
) -> str:
    """The text of a model card: metadata for the hub, and what every user has to know first.

    Args:
        checkpoint: the uncompressed model.
        manifest: of the artifact.
        folder: of the uncompressed model.
        package: of the adapter, to be imported first, e.g. ``dpq_llama``.
        library: the library that loads the artifact, under the hub's name for it.
        task: what the model is for, under the hub's name for it.
        sentence: what the artifact is.
        example: lines of Python that load it, after the import.
        more: sections on how to run, serve and train it.
        row: name of the artifact in the table of sizes.
        counted: sentences about what the numbers of bytes leave out.
    """
    bytes_before = sum(info.nbytes for info in checkpoint.tensors.values())
    weights = sum(info.numel for info in checkpoint.tensors.values())
    bytes_after = manifest.stored_nbytes
    errors = [e.relative_error for e in manifest.tensors if e.relative_error is not None]
    error = f"{sum(errors) / len(errors):.4f}" if errors else "0"
    spec_rows = "\n".join(
        f"| {spec.d} | {spec.K} | {sum(1 for t in manifest.tensors if t.spec == index)} |"
        for index, spec in enumerate(manifest.specs)
    )
    extra = package.removeprefix("dpq_")
    return f"""\
---
{_metadata(folder, manifest.source, library, task)}---

# `import {package}` first

{sentence}

## Load

```python
import {package}  # pip install "dpq[{extra}]"
{example}
```

{more}
## Sizes

| | bytes of tensors | bits per weight | mean relative error of quantized weights |
|---|---|---|---|
| source | {bytes_before:,} | {8 * bytes_before / weights:.3f} | 0 |
| {row} | {bytes_after:,} | {8 * bytes_after / weights:.3f} | {error} |

Everything stored is counted: codes, codebooks, scales and what was left uncompressed.{counted}

| subvector length d | codewords K | tensors |
|---|---|---|
{spec_rows}

Check the files and the loaded model with `dpq inspect --verify`. The licence of the original model
applies.
"""


def _metadata(folder: Path, source: str, library: str, task: str) -> str:
    """The YAML block by which the hub files the model: its licence and origin, library and task."""
    original = _original_card(folder)
    license = {key: original[key] for key in _LICENSE if key in original} or {
        "license": "other",
        "license_name": "license-of-the-base-model",
    }
    values = {
        **license,
        "base_model": _base_model(folder, source),
        "base_model_relation": "quantized",
        "library_name": library,
        "pipeline_tag": task,
        "tags": ["dpq", "product-quantization", "quantized"],
    }
    if isinstance(language := original.get("language"), str | list):
        values["language"] = language
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


_LICENSE = ("license", "license_name", "license_link")
"""Keys of a card that say what the licence is."""


def _base_model(folder: Path, source: str) -> str:
    """The hub id of the uncompressed model, or the name of its folder."""
    identity = source.partition("@")[0]
    if is_hub_id(identity) and not Path(source).exists():
        return identity
    named = config_of(folder).get("_name_or_path", "")
    if isinstance(named, str) and "/" in named and is_hub_id(named):
        return named
    return folder.resolve().name


def _original_card(folder: Path) -> dict[str, Any]:
    """The metadata of the uncompressed model's own card; empty where there is none."""
    try:
        text = (folder / "README.md").read_text("utf-8")
        begin, block, *_ = text.split("---", 2)
        values = yaml.safe_load(block) if not begin.strip() else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}
