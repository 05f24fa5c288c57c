"""Candidate sets: mixtures, gradients, regularisers, hardening, and what training gains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpq_core import kernels
from dpq_core.calibrate.candidate_training import CandidateSpec, train_candidates
from dpq_core.errors import SpecError
from dpq_core.methods.additive.stages import beam_search, decode_sum
from dpq_core.methods.candidates import CandidateWeight, install, remove
from dpq_core.methods.codebooks.kmeans import kmeans
from dpq_core.spec import KMeansSpec, QuantSpec
from dpq_core.tensor.basis.frame import Frame
from dpq_core.tensor.partition import Layout, Partition


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def open_weight(
    matrix: Tensor,
    *,
    n: int = 2,
    start: str = "distance",
    frame: Frame | None = None,
    **spec: object,
) -> CandidateWeight:
    """A matrix [rows, cols] (the core) with codebooks learned on it."""
    chosen = QuantSpec(**{"d": 4, "K": 16, "scope": "tensor", **spec})
    p = Partition.of(tuple(matrix.shape), Layout.LINEAR, chosen)
    points = p.to_subvectors(matrix)
    plain = KMeansSpec(iterations=0, tail=4)
    books = [
        kmeans(points, K=p.K, grouping=p.one_stage(), spec=plain, seed=s).codebooks
        for s in range(p.stages)
    ]
    return CandidateWeight(p, points, torch.cat(books), n=n, start=start, frame=frame)


def set_choice(weight: CandidateWeight, choice: int, sharpness: float = 50.0) -> None:
    weight.logits.data.zero_()
    weight.logits.data[choice] = sharpness


@pytest.mark.parametrize("scope", ["tensor", "subspace", 3])
@pytest.mark.parametrize("orientation", ["input", "output"])
def test_candidates_are_the_nearest_codewords_in_order(orientation: str, scope: str | int) -> None:
    matrix = normal(24, 22)  # neither 22 nor, for d=5, 24 is divisible
    weight = open_weight(matrix, n=3, scope=scope, orientation=orientation, d=5)
    p = weight.partition
    points = p.to_subvectors(matrix)
    for g in range(p.groups):
        used = p.d - p.pad if g == p.groups - 1 else p.d
        words = weight.codebooks[g // p.groups_per_codebook, :, :used].double()
        distances = (points[g, :used].T.double()[:, None] - words).square().sum(2)  # [P, K]
        found = distances.gather(1, weight.candidates[:, g].long().T)
        torch.testing.assert_close(found, distances.sort(dim=1).values[:, :3])
    nearest = kernels.assign(points, weight.codebooks.detach(), p)[0]
    assert float((weight.candidates[0] == nearest).float().mean()) > 0.999


def test_the_mixture_is_the_softmax_of_the_candidates() -> None:
    scale = torch.rand(12) + 0.5
    weight = open_weight(normal(12, 20), n=3, frame=Frame(row_scale=scale))
    weight.logits.data = normal(*weight.logits.shape, seed=3)
    shares = weight.logits.softmax(0)
    expected = torch.zeros(12, 20)
    for g in range(5):
        for r in range(12):
            words = weight.codebooks[0, weight.candidates[:, g, r].long()]
            mixed = (shares[:, g, r, None] * words).sum(0)
            expected[r, 4 * g : 4 * g + 4] = mixed * scale[r]
    torch.testing.assert_close(weight.decode(), expected)
    assert weight.decode(torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("choice", [0, 1])
def test_a_settled_mixture_is_a_plain_decoded_weight(choice: int) -> None:
    weight = open_weight(normal(16, 18))
    p = weight.partition
    set_choice(weight, choice)
    soft = weight.decode()
    codes = weight.codes()
    assert torch.equal(codes, weight.candidates[choice])
    assert torch.equal(codes, weight.harden())
    plain = decode_sum(codes, weight.codebooks.detach(), p)
    torch.testing.assert_close(weight.decode(), p.from_subvectors(plain))
    torch.testing.assert_close(soft, weight.decode())
    assert weight.share_frozen == 1
    assert weight.codebooks.requires_grad
    assert not weight.logits.requires_grad


def test_starts_are_uniform_or_in_proportion_to_nearness() -> None:
    matrix = normal(16, 16)
    assert torch.equal(
        open_weight(matrix, start="uniform", n=4).ratios(), torch.full((4, 4, 16), 0.25)
    )
    weight = open_weight(matrix, n=3)
    points = weight.partition.to_subvectors(matrix)
    words = weight.codebooks[0, weight.candidates.long()].movedim(3, 2)  # [n, G, d, P]
    # Some subvectors are codewords themselves: not nearer than a millionth of the farthest.
    distances = (points - words).square().sum(2).sqrt()
    inverse = 1 / torch.maximum(distances, 1e-6 * distances.amax(0))
    torch.testing.assert_close(weight.ratios(), inverse / inverse.sum(0))


def test_a_subvector_that_is_a_codeword_starts_as_that_codeword() -> None:
    p = Partition.of((1, 4), Layout.LINEAR, QuantSpec(d=4, K=2, scope="tensor"))
    books = normal(1, 2, 4)
    weight = CandidateWeight(p, books[:, 1, :, None].contiguous(), books)
    assert weight.codes().tolist() == [[1]]
    assert weight.ratios()[0].detach().item() > 0.999


def test_gradients_match_finite_differences() -> None:
    weight = open_weight(normal(4, 6), n=3, K=8).double()
    weight.codebooks.requires_grad_(True)
    weight.frozen[0, 1] = True
    mixed = normal(4, 6, seed=2).double()

    def output(logits: Tensor, codebooks: Tensor) -> Tensor:
        state = {"logits": logits, "codebooks": codebooks}
        decoded = torch.func.functional_call(
            _Decode(weight), {f"weight.{k}": v for k, v in state.items()}, ()
        )
        return (decoded * mixed).sum()

    inputs = (weight.logits.detach().requires_grad_(), weight.codebooks.detach().requires_grad_())
    assert torch.autograd.gradcheck(output, inputs, eps=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(output(*inputs), inputs[0])
    assert not bool(gradient[:, 0, 1].any())  # settled
    assert bool(gradient[:, 0, 0].any())


class _Decode(nn.Module):
    def __init__(self, weight: CandidateWeight) -> None:
        super().__init__()
        self.weight = weight

    def forward(self) -> Tensor:
        return self.weight.decode(torch.float64)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("kind", ["paper", "release"])
def test_the_regulariser_is_zero_exactly_when_settled(kind: str, n: int) -> None:
    weight = open_weight(normal(8, 8), n=n)
    set_choice(weight, 1)
    weight.logits.data[:, 1, 3] = 0.0  # one undecided subvector
    one = weight.regulariser(kind).detach().item()
    count = weight.frozen.numel()
    share = 1 / n
    per_candidate = 1 - abs(2 * share - 1) if kind == "paper" else n * share * (1 - share)
    assert one == pytest.approx(per_candidate / count, rel=1e-4)
    weight.frozen[1, 3] = True
    assert weight.regulariser(kind).detach().item() < 1e-6
    weight.harden()
    assert weight.regulariser(kind).detach().item() == 0.0


@pytest.mark.parametrize("kind", ["paper", "release"])
def test_the_regulariser_pulls_to_the_leading_candidate(kind: str) -> None:
    weight = open_weight(normal(8, 8), start="uniform")
    weight.logits.data[1] = 0.3
    weight.regulariser(kind).backward()
    assert bool((weight.logits.grad[1] < 0).all())  # a step against the gradient raises it
    assert bool((weight.logits.grad[0] > 0).all())


def test_subvectors_freeze_above_the_threshold_only() -> None:
    weight = open_weight(normal(8, 8), start="uniform")
    weight.logits.data[1, 0, :3] = 4.7  # a ratio of 0.991
    weight.logits.data[1, 1, :5] = 4.5  # a ratio of 0.989
    assert weight.freeze(0.99) == 3 / 16
    assert weight.frozen[0].tolist() == [True] * 3 + [False] * 5
    assert weight.ratios()[:, 0, 0].tolist() == [0.0, 1.0]
    weight.logits.data[1, 0, :3] = 0.0  # once frozen, always frozen
    assert weight.freeze(0.99) == 3 / 16


def test_candidates_of_additive_codebooks_are_sums() -> None:
    matrix = normal(20, 16)
    weight = open_weight(matrix, n=3, stages=2, K=8)
    p = weight.partition
    points = p.to_subvectors(matrix)
    exact = beam_search(points, weight.codebooks.detach(), p, beam=8)
    errors = [
        (points - decode_sum(c, weight.codebooks.detach(), p)).square().sum(1)
        for c in (exact, *weight.candidates)
    ]
    assert float((errors[0] <= errors[1] + 1e-5).float().mean()) == 1
    assert bool((errors[1] <= errors[2] + 1e-5).all())
    set_choice(weight, 2)
    expected = decode_sum(weight.candidates[2], weight.codebooks.detach(), p)
    torch.testing.assert_close(weight.decode(), p.from_subvectors(expected))
    assert weight.harden().shape == (2 * p.groups, p.points)


def block_and_data(
    n: int, seed: int = 0, **spec: object
) -> tuple[nn.Sequential, list[Tensor], list[Tensor]]:
    """A small MLP with open weights, correlated inputs, and its dense outputs."""
    torch.manual_seed(seed)
    block = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))
    mix = normal(32, 32, seed=1) @ torch.diag(torch.arange(1, 33) ** -0.7) @ normal(32, 32, seed=2)
    inputs = [normal(96, 32, seed=10 + i) @ mix / 10 for i in range(6)]
    targets = [block(x).detach() for x in inputs]
    for layer in (block[0], block[2]):
        install(layer, open_weight(layer.weight.detach(), n=n, K=32, **spec))
    return block, inputs, targets


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("regulariser", ["paper", "release"])
def test_trained_candidates_serve_the_block_far_better_than_the_nearest(
    regulariser: str, n: int
) -> None:
    block, inputs, targets = block_and_data(n)
    weights = [layer.parametrizations.weight[0] for layer in (block[0], block[2])]
    bias = block[0].bias.detach().clone()
    spec = CandidateSpec(steps=150, codebook_steps=0, regulariser=regulariser)
    result = train_candidates(block, inputs[:5], targets[:5], spec)
    assert result.error < 0.6 * result.nearest_error
    for weight, codes in zip(weights, result.codes.values(), strict=True):
        assert bool((weight.candidates == codes).any(dim=0).all())
        assert not torch.equal(codes, weight.candidates[0])
    assert torch.equal(block[0].bias, bias)
    assert block[0].bias.requires_grad
    assert block[0].bias.grad is None
    frozen = [record.frozen for record in result.stats]
    assert frozen == sorted(frozen)
    assert result.stats[-1].regulariser < 0.1 * result.stats[0].regulariser

    def error(layers: list[Tensor]) -> float:
        first, second = layers
        hidden = nn.functional.gelu(nn.functional.linear(inputs[5], first, block[0].bias))
        out = nn.functional.linear(hidden, second, block[2].bias)
        return (out - targets[5]).square().mean().detach().item()

    chosen = [weight.decode().detach() for weight in weights]
    assert torch.equal(block[0].weight, chosen[0])
    nearest = []
    for weight in weights:
        p = weight.partition
        core = decode_sum(weight.candidates[0], weight.codebooks.detach(), p)
        nearest.append(p.from_subvectors(core))
    assert error(chosen) < 0.75 * error(nearest)  # on data that it was not trained on
    remove(block[0])
    assert torch.equal(block[0].weight, chosen[0])
    assert not hasattr(block[0], "parametrizations")


def test_codebooks_learn_only_when_hard_and_help() -> None:
    block, inputs, targets = block_and_data(2)
    weight = block[0].parametrizations.weight[0]
    before = weight.codebooks.detach().clone()
    soft = train_candidates(block, inputs, targets, CandidateSpec(steps=30, codebook_steps=0))
    assert torch.equal(weight.codebooks, before)
    again = train_candidates(block, inputs, targets, CandidateSpec(steps=0, codebook_steps=40))
    assert not torch.equal(weight.codebooks, before)
    assert again.error < 0.98 * soft.error
    for name, codes in soft.codes.items():
        assert torch.equal(codes, again.codes[name])


def test_training_ends_when_all_weights_are_hard() -> None:
    block, inputs, targets = block_and_data(2)
    for layer in (block[0], block[2]):
        set_choice(layer.parametrizations.weight[0], 0)
    result = train_candidates(block, inputs, targets, CandidateSpec(codebook_steps=0))
    assert result.stats == ()
    assert result.error == pytest.approx(result.nearest_error, rel=1e-5)


def test_inputs_may_be_whatever_the_caller_runs() -> None:
    block, inputs, targets = block_and_data(2)
    named = [{"x": x} for x in inputs]
    spec = CandidateSpec(steps=5, codebook_steps=0)
    result = train_candidates(block, named, targets, spec, run=lambda entry: block(entry["x"]))
    direct = train_candidates(block_and_data(2)[0], inputs, targets, spec)
    assert result.stats == direct.stats
    assert result.error == direct.error


def test_mistakes_are_named() -> None:
    with pytest.raises(SpecError, match="cannot keep 20 of 16 codewords; ask for 1 to 16"):
        open_weight(normal(8, 8), n=20)
    with pytest.raises(SpecError, match=r"shape \[8, 8\] cannot replace one of \[4, 8\]"):
        install(nn.Linear(8, 4), open_weight(normal(8, 8)))
    block, inputs, targets = block_and_data(2)
    with pytest.raises(SpecError, match="6 inputs do not match 5 targets"):
        train_candidates(block, inputs, targets[:5], CandidateSpec())
    with pytest.raises(SpecError, match="no candidate weights"):
        train_candidates(nn.Linear(2, 2), inputs, targets, CandidateSpec())
