"""Losses of a language model, computed without all of its logits at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

LOGITS = 1 << 25
"""Logits that exist at a time, per model: 128 MiB in float32."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model says at some positions.

    Attributes:
        hidden: last hidden states ``[positions, hidden]``.
        head: hidden states ``[n, hidden]`` -> logits ``[n, vocabulary]``.
    """

    hidden: Tensor
    head: Callable[[Tensor], Tensor]


def answers(head: Callable[[Tensor], Tensor], hidden: Tensor) -> Answers:
    """At all positions of ``[samples, context, hidden]`` that have a next token."""
    return Answers(hidden=hidden[:, :-1].flatten(0, 1), head=head)


def cross_entropy(student: Answers, targets: Tensor, vocabulary: int) -> Tensor:
    """Mean over positions of -log p(target); targets int64 ``[positions]``."""

    def part(states: Tensor, wanted: Tensor) -> Tensor:
        logits = student.head(states).float()
        return functional.cross_entropy(logits, wanted, reduction="sum")

    return _mean(part, vocabulary, student.hidden, targets)


def kl(student: Answers, teacher: Answers, vocabulary: int) -> Tensor:
    """Mean over positions of KL(teacher || student)."""

    def part(states: Tensor, known: Tensor) -> Tensor:
        ours = student.head(states).float().log_softmax(-1)
        with torch.no_grad():
            theirs = teacher.head(known).float().log_softmax(-1)
        return functional.kl_div(ours, theirs, reduction="sum", log_target=True)

    return _mean(part, vocabulary, student.hidden, teacher.hidden)


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of hidden states, over the teacher's power."""
    teacher = teacher.float()
    return functional.mse_loss(student.float(), teacher) / teacher.square().mean().clamp(min=1e-12)


def _mean(
    part: Callable[[Tensor, Tensor], Tensor], vocabulary: int, states: Tensor, others: Tensor
) -> Tensor:
    """Mean over positions of a sum over some of them; logits are made again for the gradient."""
    step = max(1, LOGITS // vocabulary)
    total = torch.zeros((), device=states.device)
    again = torch.is_grad_enabled() and step < len(states)
    for first in range(0, len(states), step):
        chunk = states[first : first + step], others[first : first + step]
        total = total + (checkpoint(part, *chunk, use_reentrant=False) if again else part(*chunk))
    return total / len(states)
