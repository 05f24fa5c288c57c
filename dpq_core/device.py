"""The torch device that a name stands for, and how torch runs or records what is done on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


def is_traced() -> bool:
    """Whether torch records operators, by ``torch.compile``, ``torch.export`` or ``jit.trace``."""
    recording: bool = torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
    return recording or torch.compiler.is_compiling()


@contextmanager
def quick_products(wanted: bool = True) -> Iterator[None]:
    """Multiply float32 matrices as if rounded to bfloat16, where the processor does that quicker.

    Sums stay in float32. Unlike a model in bfloat16 this gives the same bits for any number of
    threads. Where the user has chosen a precision by torch's newer settings, those hold.

    Args:
        wanted: False leaves everything as it is.
    """
    if not wanted:
        yield
        return
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer settings, per backend, are in use
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
