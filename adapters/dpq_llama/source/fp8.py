"""Weights in blocks of 8-bit floats, each block with a scale (DeepSeek-V3), read as bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dpq_core.errors import SourceError
from dpq_core.tensor.checkpoint import TensorInfo

_SCALE = "_scale_inv"
"""End of the name of the scales of a weight: one for each block, by which it is multiplied."""


def is_fp8(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` says that weights are block-scaled 8-bit floats."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == "fp8"


class BlockScaledWeights:
    """The weights of a checkpoint that are stored as 8-bit floats with a scale per block."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
        """Find the weights that have scales.

        Args:
            config: content of the ``config.json``, for which ``is_fp8`` holds.
            tensors: all tensors of the checkpoint.

        Raises:
            SourceError: the weights are scaled in another way, or the scales do not fit.
        """
        blocks = config["quantization_config"].get("weight_block_size")
        if not (isinstance(blocks, list) and len(blocks) == 2 and all(b in _SIZES for b in blocks)):
            raise SourceError(
                f"fp8 with weight_block_size {blocks!r}, of which dpq reads pairs of sizes only; "
                "compress the bfloat16 original instead"
            )
        self._blocks: tuple[int, int] = (blocks[0], blocks[1])
        self.tensors: dict[str, TensorInfo] = {}
        self._scaled: set[str] = set()
        for name, info in tensors.items():
            if name.endswith(_SCALE) and name.removesuffix(_SCALE) in tensors:
                continue
            scales = tensors.get(f"{name}{_SCALE}")
            if scales is None:
                self.tensors[name] = info
                continue
            grid = tuple(-(-n // b) for n, b in zip(info.shape[-2:], blocks, strict=False))
            if scales.shape != (*info.shape[:-2], *grid):
                raise SourceError(f"tensor {name + _SCALE!r} is {list(scales.shape)}, not {grid}")
            self.tensors[name] = TensorInfo(info.shape, torch.bfloat16)
            self._scaled.add(name)

    def read(self, name: str, stored: Callable[[str], Tensor]) -> Tensor:
        """A tensor with its scales applied, as bfloat16; one without scales as it is stored.

        Args:
            name: name of the weight.
            stored: reads a tensor of the files.
        """
        values = stored(name)
        if name not in self._scaled:
            return values
        rows, cols = values.shape[-2:]
        scales = stored(f"{name}{_SCALE}").float()
        scales = scales.repeat_interleave(self._blocks[0], -2)[..., :rows, :]
        scales = scales.repeat_interleave(self._blocks[1], -1)[..., :cols]
        return (values.float() * scales).to(torch.bfloat16)


_SIZES = range(1, 1 << 16)
"""Sizes of a block along one axis that are accepted."""
