"""The ``README.md`` of an artifact: how to load it, its size, and how it was quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpq_core.artifact import Manifest
    from dpq_core.tensor.checkpoint import Checkpoint


def model_card(
    checkpoint: Checkpoint,
    manifest: Manifest,
    *,
    package: str,
    sentence: str,
    example: str,
    row: str,
    counted: str = "",
) -> str:
    """The text of a model card; its first line is what every user has to know.

    Args:
        checkpoint: the uncompressed model.
        manifest: of the artifact.
        package: of the adapter, to be imported first, e.g. ``dpq_llama``.
        sentence: what the artifact is.
        example: lines of Python that load it, after the import.
        row: name of the artifact in the table of sizes.
        counted: sentences about what the numbers of bytes leave out.
    """
    bytes_before = sum(info.nbytes for info in checkpoint.tensors.values())
    weights = sum(info.numel for info in checkpoint.tensors.values())
    bytes_after = manifest.stored_nbytes
    spec_rows = "\n".join(
        f"| {spec.d} | {spec.K} | {sum(1 for t in manifest.tensors if t.spec == index)} |"
        for index, spec in enumerate(manifest.specs)
    )
    extra = package.removeprefix("dpq_")
    return f"""\
# `import {package}` first

{sentence}

```python
import {package}  # pip install "dpq[{extra}]"
{example}
```

| | bytes of tensors | bits per weight |
|---|---|---|
| source | {bytes_before:,} | {8 * bytes_before / weights:.3f} |
| {row} | {bytes_after:,} | {8 * bytes_after / weights:.3f} |

Everything stored is counted: codes, codebooks, scales and what was left uncompressed.{counted}

| subvector length d | codewords K | tensors |
|---|---|---|
{spec_rows}

Check the files and the loaded model with `dpq inspect --verify`. The licence of the original model
applies.
"""
