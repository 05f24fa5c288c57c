"""Data for ``compress``, ``plan`` and ``calibrate``: what a model looks at while it is quantized.

``dpq.compress(source, "out", preset="best", data=dpq.data.texts("corpus/"))`` says the same as the
adapter's own option, here ``texts="corpus/"``: each function names the option that it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Data:
    """What a job looks at.

    Attributes:
        options: the adapter's options that say so.
    """

    options: Mapping[str, Any]


def texts(*paths: str | Path) -> Data:
    """Text files, glob patterns, or folders of .txt and .gz files (option ``texts``)."""
    return Data({"texts": tuple(map(str, paths))})


def dataset(name: str) -> Data:
    """A hub id or folder for the `datasets` library, ID[:config[:split[:column]]] (``dataset``)."""
    return Data({"dataset": name})


def generated() -> Data:
    """Text that the uncompressed language model writes itself (option ``generate``)."""
    return Data({"generate": True})


def images(folder: str | Path) -> Data:
    """A folder of images, with one sub-folder per class for a class-conditional model."""
    return Data({"images": str(folder)})


def latents(path: str | Path) -> Data:
    """Latents in a .safetensors file, scaled as the denoiser takes them (option ``latents``)."""
    return Data({"latents": str(path)})


def prompts(path: str | Path) -> Data:
    """A text file with one prompt per line (option ``prompts``)."""
    return Data({"prompts": str(path)})


def cameras(path: str | Path) -> Data:
    """A COLMAP folder, cameras.json or transforms.json of a splat scene (option ``cameras``)."""
    return Data({"cameras": str(path)})
