"""Random numbers of torch are the same on every run of a test, inside and outside of hypothesis."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from torch import Tensor


class TorchRandom:
    """What hypothesis asks of a generator that it seeds for every example."""

    def seed(self, a: int) -> None:
        torch.manual_seed(a)

    def getstate(self) -> Tensor:
        return torch.get_rng_state()

    def setstate(self, state: Tensor) -> None:
        torch.set_rng_state(state)


RANDOM = TorchRandom()
hypothesis.register_random(RANDOM)  # a weak reference: the name keeps it alive


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
