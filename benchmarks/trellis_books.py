"""Train codebooks for trellis codes, as ``trellis_1024.npy`` and ``trellis_4096.npy`` were.

Viterbi searches and means in turns, on normal values whose scale varies from subvector to subvector
(log-normal, sigma 0.2). Another run, or another processor, gives other bytes of the same quality:
the file that ships is what FORMAT.md fixes.

    python benchmarks/trellis_books.py OUT.npy --rates 1 2 3 4 5 6 7 8
    python benchmarks/trellis_books.py OUT.npy --rates 9 10 11 12 --points 2097152
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from dpq_core.kernels.cpu import trellis_path
from dpq_core.kernels.cpu.threads import spread
from dpq_core.trellis_books import LOW_RATES, MAX_RATE, RESTART, STEPS, WIDTH, size_of

K = 1024
SIGMA = 0.2
LAST_ROUNDS = 8  # rounds on all points; those before see a quarter


def sample(points: int, generator: torch.Generator) -> Tensor:
    """Subvectors ``[points, 2]``."""
    scale = torch.exp(SIGMA * torch.randn(points, 1, generator=generator) - SIGMA**2)
    return torch.randn(points, WIDTH, generator=generator) * scale


def windows(points: Tensor, book: Tensor, rate: int) -> Tensor:
    """Windows of the nearest paths, int64 ``[points]``."""
    low = torch.zeros(LOW_RATES + 1, WIDTH, K)
    high = torch.zeros(MAX_RATE - LOW_RATES, WIDTH, size_of(MAX_RATE, K))
    (low[rate] if rate <= LOW_RATES else high[rate - LOW_RATES - 1]).copy_(book.T)
    codes = torch.zeros(1, len(points), dtype=torch.int32)
    arrays = (
        points.T[None].contiguous().numpy(),
        np.ones(len(points), np.float32),
        (low.numpy(), high.numpy()),
        np.array([rate]),
        codes.numpy(),
    )
    tiles = -(-len(points) // RESTART)
    spread(lambda a, b: trellis_path.nearest(a, b, *arrays), tiles, len(points) * len(book))
    return codes[0].long()


def train(rate: int, points: int, rounds: int, generator: torch.Generator) -> Tensor:
    """The codebook ``[K, 2]`` of one rate."""
    size = size_of(rate, K)
    data, book = sample(points, generator), sample(size, generator)
    for step in range(rounds):
        early = step < rounds - LAST_ROUNDS
        quarter = points // 4
        first = int(torch.randint(4, (1,), generator=generator)) * quarter
        some = data[first : first + quarter] if early else data
        index = windows(some, book, rate)
        counts = torch.bincount(index, minlength=size)
        sums = torch.zeros(size, WIDTH).index_add_(0, index, some)
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
    parser.add_argument("--rates", type=int, nargs="*", default=list(range(1, LOW_RATES + 1)))
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(7)
    size = size_of(options.rates[0], K)
    if any(size_of(rate, K) != size for rate in options.rates):
        parser.error(f"rates up to {LOW_RATES} and those above have codebooks of different sizes")
    books = [train(rate, options.points, options.rounds, generator) for rate in options.rates]
    stored = (torch.stack(books) * STEPS[size]).round()
    kind = torch.int8 if size == K else torch.int16
    stored = stored.clamp(torch.iinfo(kind).min + 1, torch.iinfo(kind).max)
    np.save(options.out, stored.to(kind).numpy())


if __name__ == "__main__":
    main()
