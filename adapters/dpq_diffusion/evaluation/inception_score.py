"""Inception score: how sure the classifier is of each image, and how varied its answers are.

``exp(mean KL(p(y|x) || p(y)))`` (Salimans et al. 2016), per split of 5,000 images in the order in
which they come, averaged over the splits; a shorter last split counts as one, as in the ADM
evaluator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.errors import SpecError

SPLIT_SIZE = 5000

_NOTHING = torch.zeros((), dtype=torch.float64)  # added to [C], it becomes [C]


@dataclass(frozen=True)
class Score:
    """Mean and (population) standard deviation over ``splits`` splits."""

    mean: float
    std: float
    splits: int


class InceptionScore:
    """A running Inception score of logits in batches; it keeps one class distribution per split.

    The mean KL of a split is ``mean_x sum_y p log p  -  sum_y m log m`` with ``m`` the mean of
    ``p``, so that sums suffice.
    """

    def __init__(self, split_size: int = SPLIT_SIZE) -> None:
        self._split_size = split_size
        self._count = 0  # images in the current split
        self._negative_entropy = 0.0  # sum over its images, in nats
        self._probabilities = _NOTHING  # sum over its images: float64 [C]
        self._scores: list[float] = []

    def update(self, logits: Tensor) -> None:
        """Add logits ``[n, C]``.

        Raises:
            SpecError: wrong shape, NaN or infinity.
        """
        if logits.ndim != 2:
            raise SpecError(f"logits have shape {list(logits.shape)}; expected [N, C]")
        if not logits.isfinite().all():
            raise SpecError("the extractor returned NaN or infinite logits")
        rest = logits.detach().to("cpu", torch.float64).log_softmax(1)
        while len(rest):
            n = min(len(rest), self._split_size - self._count)
            part, rest = rest[:n], rest[n:]
            p = part.exp()
            self._negative_entropy += (p * part).sum().item()
            self._probabilities = self._probabilities + p.sum(0)
            self._count += n
            if self._count == self._split_size:
                self._close()

    def result(self) -> Score:
        """The score of all logits so far; nothing can be added afterwards.

        Raises:
            SpecError: there were no images.
        """
        if self._count:
            self._close()
        if not self._scores:
            raise SpecError("the Inception score of no images is undefined")
        scores = torch.tensor(self._scores, dtype=torch.float64)
        return Score(scores.mean().item(), scores.std(correction=0).item(), len(scores))

    def _close(self) -> None:
        marginal = self._probabilities / self._count
        entropy = torch.special.entr(marginal).sum().item()
        self._scores.append(math.exp(self._negative_entropy / self._count + entropy))
        self._count, self._negative_entropy, self._probabilities = 0, 0.0, _NOTHING


def inception_score(logits: Tensor, split_size: int = SPLIT_SIZE) -> Score:
    """The score of logits ``[N, C]``.

    Raises:
        SpecError: no images, wrong shape, NaN or infinity.
    """
    score = InceptionScore(split_size)
    score.update(logits)
    return score.result()
