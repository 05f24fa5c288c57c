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
class Predictions:
    """The predictions of a model at some positions, whose logits are computed in parts.

    Attributes:
        hidden: last hidden states ``[positions, hidden]``.
        head: hidden states ``[n, hidden]`` -> logits ``[n, vocabulary]``.
    """

    hidden: Tensor
    head: Callable[[Tensor], Tensor]


def predictions(head: Callable[[Tensor], Tensor], hidden: Tensor) -> Predictions:
    """The predictions at all positions of ``[samples, context, hidden]`` with a next token."""
    return Predictions(hidden=hidden[:, :-1].flatten(0, 1), head=head)


def cross_entropy(student: Predictions, targets: Tensor, vocabulary: int) -> Tensor:
    """Cross-entropy, the mean over positions of -log p(target); targets int64 ``[positions]``."""

    def part(states: Tensor, labels: Tensor) -> Tensor:
        logits = student.head(states).float()
        return functional.cross_entropy(logits, labels, reduction="sum")

    return _mean(part, vocabulary, student.hidden, targets)


def sampled(student: Predictions, vocabulary: int, generator: torch.Generator) -> Tensor:
    """A loss with the gradients of the cross-entropy of tokens drawn from the predictions.

    The gradient of the logits is known: probabilities, minus one at the token that was drawn. So
    the head runs once forward and once backward, and no logits are kept. The value means nothing.
    """
    gradients = []
    for states in torch.split(student.hidden.detach(), max(1, LOGITS // vocabulary)):
        states = states.requires_grad_()
        logits = student.head(states)
        with torch.no_grad():
            gradient = logits.detach().float().softmax(-1)
            sums = gradient.cumsum(-1)
            draw = torch.rand(len(sums), 1, generator=generator).to(sums.device) * sums[:, -1:]
            tokens = torch.searchsorted(sums, draw).clamp(max=sums.shape[1] - 1)
            gradient.scatter_add_(1, tokens, gradient.new_full(tokens.shape, -1.0))
        logits.backward(gradient.to(logits.dtype))  # type: ignore[no-untyped-call]
        assert states.grad is not None
        gradients.append(states.grad)
    return (student.hidden * torch.cat(gradients)).sum()


def kl(student: Predictions, teacher: Predictions, vocabulary: int) -> Tensor:
    """Kullback-Leibler divergence KL(teacher || student), the mean over positions."""

    def part(states: Tensor, teacher_states: Tensor) -> Tensor:
        student_logs = student.head(states).float().log_softmax(-1)
        with torch.no_grad():
            teacher_logs = teacher.head(teacher_states).float().log_softmax(-1)
        return functional.kl_div(student_logs, teacher_logs, reduction="sum", log_target=True)

    return _mean(part, vocabulary, student.hidden, teacher.hidden)


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of hidden states, over the mean square of the teacher's."""
    teacher = teacher.float()
    return functional.mse_loss(student.float(), teacher) / teacher.square().mean().clamp(min=1e-12)


def _mean(
    part: Callable[[Tensor, Tensor], Tensor], vocabulary: int, states: Tensor, others: Tensor
) -> Tensor:
    """Mean over positions of ``part``, a sum over some; the backward pass recomputes logits."""
    step = max(1, LOGITS // vocabulary)
    total = torch.zeros((), device=states.device)
    remake = torch.is_grad_enabled() and step < len(states)
    for first in range(0, len(states), step):
        chunk = states[first : first + step], others[first : first + step]
        total = total + (checkpoint(part, *chunk, use_reentrant=False) if remake else part(*chunk))
    return total / len(states)
