"""Normal equations of the codewords of a layer, for given codes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dpq_core.methods.assignment.objective import Objective, quadratic

COUNTS = 1 << 22  # counters that exist at a time: 32 MB


class NormalEquations:
    """The normal equations of all N codewords of a layer, or of all its pool vectors.

    With decode(X) the matrix [R, C] that codewords X [N, d] stand for, they read
    ``decode^T(w decode(X) H) = decode^T(w W H)``; N is S*B*K, or V with a pool.

    Args:
        objective: the layer.
        codes: int32 [S*G, P].
        codebooks: float32 [S*B, K, d], or the pool [V, d].
        index_map: [S*B, K] into the pool, if there is one.
    """

    def __init__(
        self,
        objective: Objective,
        codes: Tensor,
        codebooks: Tensor,
        index_map: Tensor | None,
    ) -> None:
        self.objective = objective
        self.map = None if index_map is None else index_map.long().flatten()
        self.vectors = len(codebooks)  # of the pool
        g, K = objective.grouping, (codebooks if index_map is None else index_map).shape[1]
        self.codes = codes.view(g.stages, g.groups, g.points).long()  # [S, G, P]
        self.shape = (g.stages * g.codebooks, K, g.d)
        self.by_row = objective.orientation == "input"
        order = objective.hessian.order
        if not self.by_row:  # the Hessian's order is that of the points
            self.codes = self.codes[:, :, order]
            order = torch.arange(g.groups, device=order.device)
        codebook_of = order // g.groups_per_codebook
        self.places = [torch.nonzero(codebook_of == b)[:, 0] for b in range(g.codebooks)]
        self.order = order

    def gradient(self, codebooks: Tensor) -> tuple[Tensor, float]:
        """The gradient decode^T(w (W - decode(X)) H), float64 [N, d], and E_out / hessian.scale."""
        return self._transposed(codebooks.reshape(-1, self.shape[2]), residual=True)

    def normal(self, vectors: Tensor) -> tuple[Tensor, float]:
        """The product decode^T(w decode(X) H), float64 [N, d], and its inner product with X."""
        return self._transposed(vectors, residual=False)

    def preconditioner(self) -> Tensor:
        """Inverses of the d x d blocks of the normal matrix: float64 [N, d, d]."""
        _, K, d = self.shape
        o = self.objective
        diagonal, weights = o.hessian.diagonal, o.weights(slice(0, len(o.core)))
        blocks = torch.zeros(*self.shape[:2], d * d, dtype=torch.float64, device=diagonal.device)
        if self.by_row:
            for row, places, codes in self._books(slice(None)):
                for some in torch.split(torch.arange(len(places)), max(1, COUNTS // K)):
                    used = codes[some] + K * torch.arange(len(some), device=codes.device)[:, None]
                    each = weights.expand(len(some), -1).reshape(1, -1)
                    counts = _scatter(each, used.flatten(), len(some) * K).view(-1, K)
                    blocks[row] += counts.T @ diagonal[places[some]].flatten(1).double()
        else:
            sums = torch.zeros(self.shape, dtype=torch.float64, device=diagonal.device)
            self._add_up(diagonal[:, 0] * weights, slice(None), sums)
            blocks[..., :: d + 1] = sums
        blocks = self._to_vectors(blocks.view(-1, d * d)).view(-1, d, d)
        unused = blocks.diagonal(dim1=1, dim2=2).sum(dim=1) <= 0
        blocks += torch.eye(d, dtype=torch.float64, device=blocks.device) * unused[:, None, None]
        blocks.diagonal(dim1=1, dim2=2).clamp_min_(torch.finfo(torch.float32).tiny)
        inverses: Tensor = torch.linalg.inv(blocks)
        return inverses

    def _transposed(self, vectors: Tensor, *, residual: bool) -> tuple[Tensor, float]:
        """The transpose of ``decode`` on decoded vectors, or on what they leave of the core."""
        books = (vectors if self.map is None else vectors[self.map]).float().view(self.shape)
        sums = torch.zeros(self.shape, dtype=torch.float64, device=books.device)
        total = torch.zeros((), dtype=torch.float64, device=books.device)
        for rows in self.objective.chunks():
            values = self._decode(books, rows)  # [n, m]
            if residual:
                values = self.objective.by_column(rows) - values
            weights = self.objective.weights(rows)
            image = self.objective.hessian.matrix @ values
            total += quadratic(values, image, weights)
            self._add_up(image.mul_(weights), rows, sums)
        return self._to_vectors(sums.view(-1, self.shape[2])), float(total)

    def _books(self, rows: slice) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield every codebook: its row of ``shape``, the places of its groups, and their codes.

        The place of a group is its step, or for orientation output its number: where its d
        coordinates lie along the cut axis.
        """
        some = rows if self.by_row else slice(None)
        for stage, codes in enumerate(self.codes):
            for book, places in enumerate(self.places):
                row = stage * len(self.places) + book
                yield row, places, codes[self.order[places], some]

    def _subvectors(self, values: Tensor) -> Tensor:
        """View values [n, m] as subvectors [places, d, points]."""
        along = values if self.by_row else values.T
        return along.view(-1, self.shape[2], along.shape[1])

    def _decode(self, books: Tensor, rows: slice) -> Tensor:
        """Values of some rows for given codebooks, laid out as ``Objective.by_column``: [n, m]."""
        values = torch.zeros_like(self.objective.by_column(rows))
        subvectors = self._subvectors(values)
        for row, places, codes in self._books(rows):
            words = books[row].T.contiguous().index_select(1, codes.flatten())
            subvectors[places] += words.view(-1, *codes.shape).movedim(0, 1)
        return self.objective.without_pad(values)

    def _add_up(self, values: Tensor, rows: slice, sums: Tensor) -> None:
        """Add values [n, m] by code to float64 sums [S*B, K, d]: the transpose of ``_decode``."""
        subvectors = self._subvectors(self.objective.without_pad(values))
        for row, places, codes in self._books(rows):
            each = subvectors[places].movedim(1, 0).flatten(1)
            sums[row] += _scatter(each, codes.flatten(), self.shape[1])

    def _to_vectors(self, slots: Tensor) -> Tensor:
        """Add up sums [S*B*K, ...] of codewords by pool vector, where there is a pool."""
        if self.map is None:
            return slots
        return _scatter(slots.T, self.map, self.vectors)  # [V, ...]


def _scatter(values: Tensor, codes: Tensor, K: int) -> Tensor:
    """Sums of values [d, n] by code [n]: float64 [K, d], the same on every run."""
    if values.device.type != "cpu":
        return _integer_sums(values, codes, K)
    columns = [torch.bincount(codes, weights=row.double(), minlength=K) for row in values]
    return torch.stack(columns, dim=1)


def _integer_sums(values: Tensor, codes: Tensor, K: int) -> Tensor:
    """The sums as 64-bit integers, which commute: on a GPU threads arrive in any order."""
    bits = 62 - values.shape[1].bit_length() - torch.frexp(values.abs().max()).exponent
    unit = torch.ldexp(torch.ones((), dtype=torch.float64, device=values.device), bits)
    sums = torch.zeros(K, len(values), dtype=torch.int64, device=values.device)
    sums.index_add_(0, codes, (values.double() * unit).round().long().T)
    return sums / unit
