"""Rate control: the price of a bit in the loss, adapted until the file has its allowed size."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

_START = 0.3
"""Of the loss per bit of the file that comes in. At a fine quantization an L1 error halves with
each bit per number, so that of about two bits per number the price of all is once to twice it."""

_GAIN = 2.0
"""Relative change of the price in one step, per relative excess of bytes."""

_DAMPING = 300.0
"""Logarithm by which the price is higher for the time being, per relative excess of bytes. A price
changes how fast bytes change, not how many there are: following the excess alone would swing."""

_LARGEST_CHANGE = 0.1
_LARGEST_DAMPING = 2.0

_SHED = 0.4
"""Share of the training in which a file that begins too large is to lose its bytes: latents move by
hundredths of a step, and what a high price drives to zero at once does not come back."""

_MARGIN = 1.002
"""Of the allowed bytes: as the learning rate falls, bytes lag behind and end a little below the
aim, and a little too many are rounded away (``SceneTask.fitted``) at next to no loss."""

_EVERY = 20
"""Steps between two codings, which tell how many bytes the estimated bits really take."""


class RateControl(nn.Module):
    """The price of a bit, which follows the excess of the file over its allowed bytes.

    Attributes:
        value: price of a bit in units of the loss, a scalar.
        scale: bytes of the file per estimated bit, a scalar.
        steps: training steps taken, a scalar.
    """

    value: Tensor
    scale: Tensor
    steps: Tensor

    def __init__(self, *, loss: float, bits: float, nbytes: int, allowed: int) -> None:
        """Begin with the price at which the file was probably coded.

        Args:
            loss: loss of the student as it came.
            bits: its estimated bits.
            nbytes: bytes that it takes.
            allowed: bytes that the file may take in the end.
        """
        super().__init__()
        self._first, self._last, self._shed = nbytes, _MARGIN * allowed, 0.0
        self.register_buffer("value", torch.tensor(_START * loss / bits, dtype=torch.float64))
        self.register_buffer("scale", torch.zeros((), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, bits: Tensor, nbytes: Callable[[], int]) -> Tensor:
        """The cost of the bits in this step, after which the price follows the excess of bytes.

        Args:
            bits: estimated; the cost is differentiable by them.
            nbytes: codes the file and says how large it is.
        """
        estimated = float(bits.detach())
        if int(self.steps) % _EVERY == 0:
            self.scale.fill_(nbytes() / estimated)
        excess = estimated * float(self.scale) / self._aim() - 1
        self.steps += 1
        self.value *= math.exp(_limited(_GAIN * excess, _LARGEST_CHANGE))
        return bits * (float(self.value) * math.exp(_limited(_DAMPING * excess, _LARGEST_DAMPING)))

    def begin(self, steps: int) -> None:
        """Plan the decrease to the allowed bytes over a share of the training steps."""
        self._shed = _SHED * steps

    def _aim(self) -> float:
        """Bytes that the file should have at this step of the training."""
        share = 1 - int(self.steps) / self._shed if self._shed else 0.0
        excess: float = max(1.0, self._first / self._last) ** max(0.0, share)
        return excess * self._last


def _limited(value: float, largest: float) -> float:
    return min(max(value, -largest), largest)
