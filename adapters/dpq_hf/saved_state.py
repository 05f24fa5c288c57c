"""The state and config that ``save_pretrained`` writes of a model changed after loading.

Merging an adapter and changing the size of a table make layers dense, and training scripts cast
every parameter of a model; the saved folder has to fit its config nevertheless.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dpq_core.spec import QuantSpec
from dpq_core.tensor.int8 import to_int8
from dpq_core.tensor.pq_tensor import HALF_PARTS
from dpq_hf.stored_config import StoredConfig


def forget_dense(config: StoredConfig, layers: Mapping[str, nn.Module | None]) -> None:
    """Leave the weights out of a config that have become dense since they were loaded.

    Args:
        config: of the model, changed in place.
        layers: name of a quantized weight in the config -> the layer that had it, if any.
    """
    for name, layer in layers.items():
        if isinstance(getattr(layer, "weight", None), nn.Parameter):
            config.forget(name)


def stored_state(
    state: Mapping[str, Tensor], spec_of: Mapping[str, QuantSpec]
) -> dict[str, Tensor]:
    """The state of a model with the parts of quantized weights in the dtypes of their specs.

    Args:
        state: the state dict of the model.
        spec_of: path of a quantized weight -> its spec.
    """
    result = dict(state)
    for path, spec in spec_of.items():
        for part in ("codebooks", "pool"):
            values = result.get(f"{path}.{part}")
            if values is None:
                continue
            if spec.codebook_dtype == "int8" and values.is_floating_point():
                values, result[f"{path}.codebook_scale"] = to_int8(values)
            result[f"{path}.{part}"] = values.to(getattr(torch, spec.codebook_dtype))
        for part in HALF_PARTS:
            if (values := result.get(f"{path}.{part}")) is not None:
                result[f"{path}.{part}"] = values.to(torch.float16)
    return result
