"""The torch device that a name stands for."""

from __future__ import annotations

import torch

from dpq_core.errors import SpecError


def resolve(name: str) -> torch.device:
    """The torch device of a name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        SpecError: the name is unknown or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"device {name!r} cannot be used ({reason}); try auto or cpu") from None
    return device
