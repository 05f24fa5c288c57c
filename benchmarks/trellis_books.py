"""Train codebooks for trellis codes, as those of ``dpq_core/trellis_1024.npy`` were.

Viterbi searches and means in turns, on normal values whose scale varies from subvector to subvector
(log-normal, sigma 0.2). Another run, or another processor, gives other bytes of the same quality:
the file that ships is what FORMAT.md fixes.

    python benchmarks/trellis_books.py OUT.npy [--points 524288] [--rounds 40] [--rates 1 2 ...]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from dpq_core.kernels.cpu import trellis_path
from dpq_core.kernels.cpu.threads import spread
from dpq_core.trellis_books import MAX_RATE, RESTART, STEPS, WIDTH

K = 1024
SIGMA = 0.2
LAST_ROUNDS = 8  # rounds on all points; those before see a quarter


def sample(points: int, generator: torch.Generator) -> Tensor:
    """Subvectors ``[points, 2]``."""
    scale = torch.exp(SIGMA * torch.randn(points, 1, generator=generator) - SIGMA**2)
    return torch.randn(points, WIDTH, generator=generator) * scale


def windows(points: Tensor, book: Tensor, rate: int) -> Tensor:
    """Windows of the nearest paths, int64 ``[points]``."""
    books = torch.zeros(MAX_RATE + 1, WIDTH, K)
    books[rate] = book.T
    codes = torch.zeros(1, len(points), dtype=torch.int32)
    arrays = (
        points.T[None].contiguous().numpy(),
        np.ones(len(points), np.float32),
        books.numpy(),
        np.array([rate]),
        codes.numpy(),
    )
    tiles = -(-len(points) // RESTART)
    spread(lambda a, b: trellis_path.nearest(a, b, *arrays), tiles, len(points) * K)
    return codes[0].long()


def train(rate: int, points: int, rounds: int, generator: torch.Generator) -> Tensor:
    """The codebook ``[K, 2]`` of one rate."""
    data, book = sample(points, generator), sample(K, generator)
    for step in range(rounds):
        early = step < rounds - LAST_ROUNDS
        quarter = points // 4
        first = int(torch.randint(4, (1,), generator=generator)) * quarter
        some = data[first : first + quarter] if early else data
        index = windows(some, book, rate)
        counts = torch.bincount(index, minlength=K)
        sums = torch.zeros(K, WIDTH).index_add_(0, index, some)
        book = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], book)
        dead = (counts == 0).nonzero()[:, 0]
        if early and len(dead):  # a copy of a codeword that many windows take
            busy = counts.argsort(descending=True)[: max(8, len(dead))]
            chosen = busy[torch.randint(len(busy), (len(dead),), generator=generator)]
            book[dead] = book[chosen] + 0.05 * torch.randn(len(dead), WIDTH, generator=generator)
    test = sample(1 << 16, generator)
    error = float((book[windows(test, book, rate)] - test).square().mean())
    print(f"rate {rate}: error {error:.4f}", flush=True)
    return book


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out")
    parser.add_argument("--points", type=int, default=524_288)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--rates", type=int, nargs="*", default=list(range(1, MAX_RATE + 1)))
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(7)
    books = torch.zeros(MAX_RATE, K, WIDTH)
    for rate in options.rates:
        books[rate - 1] = train(rate, options.points, options.rounds, generator)
    np.save(options.out, (books * STEPS).round().clamp(-127, 127).to(torch.int8).numpy())


if __name__ == "__main__":
    main()
