"""Permutations of hidden units between layers: the function stays the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from dpq_core.errors import SpecError
from dpq_core.permute_graph import head_permutation, permute_hidden


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _shuffled(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def test_hidden_units_of_an_mlp_may_be_permuted() -> None:
    w1, b1, w2 = _random(24, 8), _random(24, seed=1), _random(6, 24, seed=2)
    x, perm = _random(5, 8, seed=3), _shuffled(24, 4)
    (v1, c1), (v2,) = permute_hidden([w1, b1], [w2], perm)
    torch.testing.assert_close(
        gelu(x @ v1.T + c1) @ v2.T, gelu(x @ w1.T + b1) @ w2.T, rtol=0, atol=1e-12
    )
    assert torch.equal(v2, w2[:, perm])
    assert not torch.equal(v1, w1)


def test_hidden_units_of_a_gated_mlp_may_be_permuted() -> None:
    up, gate, down = _random(24, 8), _random(24, 8, seed=1), _random(6, 24, seed=2)
    x, perm = _random(5, 8, seed=3), _shuffled(24, 4)
    (up2, gate2), (down2,) = permute_hidden([up, gate], [down], perm)
    torch.testing.assert_close(
        (silu(x @ gate2.T) * (x @ up2.T)) @ down2.T, (silu(x @ gate.T) * (x @ up.T)) @ down.T
    )


def test_value_heads_may_be_permuted_inside_with_grouped_queries() -> None:
    kv, repeat, dim, tokens = 2, 3, 4, 5
    value, out = _random(kv * dim, 8), _random(6, kv * repeat * dim, seed=1)
    x = _random(tokens, 8, seed=2)
    mixing = torch.softmax(_random(kv * repeat, tokens, tokens, seed=3), dim=-1)

    def attention(value: Tensor, out: Tensor) -> Tensor:
        heads = (x @ value.T).view(tokens, kv, dim).movedim(1, 0).repeat_interleave(repeat, dim=0)
        return (mixing @ heads).movedim(0, 1).reshape(tokens, -1) @ out.T

    within = torch.stack([_shuffled(dim, 5), _shuffled(dim, 6)])
    assert not torch.equal(within[0], within[1])
    (value2,), (out2,) = permute_hidden(
        [value], [out], head_permutation(within), consumer_perm=head_permutation(within, repeat)
    )
    torch.testing.assert_close(attention(value2, out2), attention(value, out))
    assert not torch.equal(value2, value)


def test_permutations_that_do_not_fit_are_refused() -> None:
    w1, w2 = _random(4, 3), _random(2, 5)
    with pytest.raises(SpecError, match="axis of 5 units cannot be permuted by 4"):
        permute_hidden([w1], [w2], torch.arange(4))
    with pytest.raises(SpecError, match="axis of 4 units cannot be permuted by 5"):
        permute_hidden([w1], [w2], torch.arange(5))
    with pytest.raises(SpecError, match=r"not a permutation of 0\.\.3"):
        permute_hidden([w1], [w2], torch.tensor([0, 1, 1, 3]))
