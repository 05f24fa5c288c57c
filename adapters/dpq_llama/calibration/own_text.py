"""Text that a model writes itself: calibration without data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpq_core.data.last import Last
from dpq_core.methods.quantize import tensor_seed
from dpq_core.run import Progress, Run, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROWS = 32
"""Windows that are written at a time: they share the reading of the weights."""


_WRITTEN: Last[Tensor] = Last()


def own_windows(
    model: PreTrainedModel, fingerprint: str, count: int, context: int, run: Run
) -> Tensor:
    """``write_windows``, once for all who ask for the same windows of the same model.

    Args:
        model: uncompressed, with a head.
        fingerprint: of its checkpoint.
        count: windows.
        context: tokens of each.
        run: seed and progress.
    """

    def write() -> Tensor:
        return write_windows(model, count, context, run.seed, run.progress)

    return _WRITTEN.get((fingerprint, str(model.device), count, context, run.seed), write)


@torch.no_grad()
def write_windows(
    model: PreTrainedModel, count: int, context: int, seed: int, progress: Progress = silent
) -> Tensor:
    """Windows that the model writes at temperature 1, from the whole of its distribution.

    Each begins as a document does, or with a random token where the model has no such token; and
    what follows the end of a document is the beginning of another one.

    Args:
        model: uncompressed, with a head.
        count: windows.
        context: tokens of each.
        seed: of every draw.
        progress: in tokens.

    Returns:
        int64 ``[count, context]`` on the CPU.
    """
    ids = torch.empty(count, context, dtype=torch.int64)
    for first in range(0, count, _ROWS):
        rows = ids[first : first + _ROWS]
        generator = torch.Generator().manual_seed(tensor_seed(seed, f"window {first}"))
        begin, ends = _begin(model), _ends(model)
        vocabulary: int = model.config.vocab_size
        rows[:, 0] = torch.randint(vocabulary, (len(rows),), generator=generator)
        if begin is not None:
            rows[:, 0] = begin
        cache: Any = None
        for at in range(1, context):
            progress("writing text", (first * context + at * len(rows)), count * context)
            last = rows[:, at - 1 : at].to(model.device)
            output = model(input_ids=last, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            chances = output.logits[:, -1].float().softmax(-1).cpu()
            rows[:, at] = torch.multinomial(chances, 1, generator=generator)[:, 0]
            if begin is not None and begin not in ends:
                rows[torch.isin(rows[:, at - 1], ends), at] = begin
    progress("writing text", count * context, count * context)
    return ids


def _begin(model: PreTrainedModel) -> int | None:
    """The token that begins a document."""
    found = model.config.bos_token_id
    return found if isinstance(found, int) else None


def _ends(model: PreTrainedModel) -> Tensor:
    """The tokens that end one, int64 ``[n]``."""
    found = model.config.eos_token_id
    ends = [] if found is None else [found] if isinstance(found, int) else list(found)
    return torch.tensor(ends, dtype=torch.int64)
