"""Candidate codes: training decides which of its nearest codewords each subvector takes.

See VQ4DiT, arXiv 2408.17131, and docs/algorithms.md#candidates. A weight is a mixture of the n
nearest codewords of each subvector, ``w = sum_i softmax(z)_i c_i``. The ratios are trained on the
output of a block, with a regulariser that drives them to 0 or 1; each is frozen when it gets there,
and becomes a plain code in the end. n floats per subvector are trained, so this is done block by
block (``dpq_core.calibrate.candidate_training``).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dpq_core.errors import SpecError
from dpq_core.methods.additive.beam import decode_sum, nearest_sums, squared_errors
from dpq_core.tensor.basis.frame import Frame
from dpq_core.tensor.partition import Partition

Start = Literal["uniform", "distance"]
Regulariser = Literal["paper", "release"]

_MIN_DISTANCE = 1e-6
"""Least distance of a candidate, as a share of that of the farthest one."""


class CandidateWeight(nn.Module):
    """A weight as mixtures of candidate codewords, for use in place of a dense weight.

    Attributes:
        candidates: int32 [n, S*G, P], nearest first.
        logits: trainable z, float32 [n, G, P].
        frozen: bool [G, P]: subvectors that keep their most likely candidate.
        codebooks: float32 [S*B, K, d]; trainable only once ``harden`` was called.
    """

    candidates: Tensor
    frozen: Tensor

    def __init__(
        self,
        partition: Partition,
        subvectors: Tensor,
        codebooks: Tensor,
        *,
        n: int = 2,
        start: Start = "distance",
        frame: Frame | None = None,
    ) -> None:
        """Find the candidates of every subvector.

        Args:
            partition: all sizes.
            subvectors: float32 [G, d, P] of the core to be quantized.
            codebooks: float32 [S*B, K, d].
            n: candidates per subvector, 2 or 3 (docs/algorithms.md#candidates); at most K^S.
            start: equal ratios (``uniform``, the paper), or ratios in inverse proportion to the
                distances (``distance``, the release: z_i = log(farthest / distance_i)).
            frame: the way from the core to the matrix; None if the core is the matrix.

        Raises:
            SpecError: shapes do not fit, or there are fewer than n codewords.
        """
        super().__init__()
        p = partition
        self.partition, self.frame = p, frame or Frame()
        candidates = nearest_sums(subvectors, codebooks, p, keep=n)
        logits = subvectors.new_zeros(n, p.groups, p.points)
        if start == "distance":
            logits = _inverse_distances(subvectors, codebooks, candidates, p)
        self.register_buffer("candidates", candidates)
        self.register_buffer("frozen", torch.zeros_like(logits[0], dtype=torch.bool))
        self.logits = nn.Parameter(logits)
        self.codebooks = nn.Parameter(codebooks.detach().clone(), requires_grad=False)

    def ratios(self) -> Tensor:
        """The shares of the candidates, float32 [n, G, P]; 0 or 1 for frozen subvectors."""
        soft = self.logits.softmax(dim=0)
        if not bool(self.frozen.any()):
            return soft
        hard = torch.zeros_like(soft).scatter_(0, self.logits.argmax(dim=0, keepdim=True), 1.0)
        return torch.where(self.frozen, hard, soft)

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dense weight in its original shape, differentiable in logits and codebooks."""
        return self.partition.from_matrix(self.frame.restore(self.core()).to(dtype))

    def core(self) -> Tensor:
        """The core, a mixture of codewords: float32 [R, C], differentiable like ``decode``."""
        if self.share_frozen == 1:
            return self.partition.from_subvectors(self._sums(self.codes()))
        ratios = self.ratios()
        core = torch.zeros((), device=ratios.device)
        for share, codes in zip(ratios, self.candidates, strict=True):
            core = core + share[:, None] * self._sums(codes)
        return self.partition.from_subvectors(core)

    def forward(self, weight: Tensor) -> Tensor:
        """The decoded weight in the dtype of the dense ``weight``, as a parametrization."""
        return self.decode(weight.dtype)

    def regulariser(self, kind: Regulariser = "paper") -> Tensor:
        """How far the ratios are from 0 and 1: zero exactly if every ratio is 0 or 1.

        ``paper``: mean of ``1 - |2 r - 1|``; ``release``: n times the mean of ``r (1 - r)``.
        """
        r = self.ratios()
        return (1 - (2 * r - 1).abs()).mean() if kind == "paper" else len(r) * (r * (1 - r)).mean()

    @torch.no_grad()
    def freeze(self, above: float = 0.99) -> float:
        """Freeze the subvectors with a ratio above ``above``; returns the share that is frozen."""
        self.frozen |= self.logits.softmax(dim=0).amax(dim=0) > above
        return self.share_frozen

    @property
    def share_frozen(self) -> float:
        """The share of subvectors that are frozen, 0..1."""
        return float(self.frozen.float().mean(dtype=torch.float64))

    def codes(self) -> Tensor:
        """The most likely candidate of every subvector: int32 [S*G, P]."""
        stages, (G, P) = self.partition.stages, self.frozen.shape
        likeliest = self.logits.argmax(dim=0).expand(1, stages, G, P)
        by_stage = self.candidates.view(-1, stages, G, P)
        return by_stage.gather(0, likeliest)[0].flatten(0, 1)

    def harden(self) -> Tensor:
        """Freeze every subvector and make the codebooks trainable; returns the codes [S*G, P]."""
        self.frozen.fill_(True)
        self.logits.requires_grad_(False)
        self.codebooks.requires_grad_(True)
        return self.codes()

    def _sums(self, codes: Tensor) -> Tensor:
        """Sums of codewords, float32 [G, d, P], of codes [S*G, P]."""
        return decode_sum(codes, self.codebooks, self.partition)


def install(module: nn.Module, weight: CandidateWeight, name: str = "weight") -> None:
    """Use ``weight`` in place of the parameter ``name`` of ``module``, which is kept, unused.

    Raises:
        SpecError: the shapes differ.
    """
    dense = getattr(module, name)
    if tuple(dense.shape) != weight.partition.shape:
        raise SpecError(
            f"a weight of shape {list(weight.partition.shape)} cannot replace one of "
            f"{list(dense.shape)}"
        )
    dense.requires_grad_(False)
    parametrize.register_parametrization(module, name, weight)


def remove(module: nn.Module, name: str = "weight") -> None:
    """Undo ``install``; the parameter keeps the values of the decoded weight."""
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _inverse_distances(
    subvectors: Tensor, codebooks: Tensor, candidates: Tensor, p: Partition
) -> Tensor:
    """Logits ``log(farthest / distance_i)`` of the candidates, float32 [n, G, P]."""
    distances = torch.stack(
        [squared_errors(subvectors, codebooks, codes, p) for codes in candidates]
    ).sqrt()
    farthest = distances.amax(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    return -(distances / farthest).clamp_min(_MIN_DISTANCE).log()
