"""Input statistics: H = X^T X / n exactly, one matrix per distinct input, right for every layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpq_core.data.statistics import CollectOptions, Collector, collect, layer_inputs, moment
from dpq_core.data.statistics.hooks import TensorSerials
from dpq_core.data.statistics.moment import Moment
from dpq_core.errors import SpecError
from dpq_core.runtime.swap import swap_in
from dpq_core.spec import QuantSpec
from dpq_core.tensor.partition import Layout, Partition

pytestmark = pytest.mark.portable


def second_moment(x):
    """The definition, in float64: rows [n, cols] -> [cols, cols]."""
    x = x.double().reshape(-1, x.shape[-1])
    return x.T @ x / len(x)


def close(found, wanted):
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=1e-6)


# -- Moment ---------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    cols=st.integers(1, 40),
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    rows=st.integers(1, 7),
    block=st.integers(1, 50),
)
def test_a_moment_is_the_mean_of_x_x_whatever_the_chunks(cols, sizes, rows, block):
    xs = [torch.randn(n, cols) for n in sizes]
    whole, found = torch.cat(xs), Moment(cols)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moment, "_ROWS", rows)
        patch.setattr(moment, "_COLUMNS", block)
        for x in xs:
            found.update(x)
        mean = found.mean()
    assert found.count == len(whole)
    close(mean, whole.double().T @ whole.double() / max(1, len(whole)))
    assert mean.dtype == torch.float32
    assert torch.equal(mean, mean.T)


@pytest.mark.parametrize("block", [3, 7, 20])
def test_a_moment_is_exactly_symmetric_where_the_products_are_not(block, monkeypatch):
    """No BLAS promises that x^T x is: here both halves of each product differ on purpose."""

    class Uneven(torch.Tensor):
        def __matmul__(self, other):
            return (self.as_subclass(Tensor) @ other.as_subclass(Tensor)) + torch.rand(
                len(self), other.shape[1]
            )

    monkeypatch.setattr(moment, "_COLUMNS", block)
    found = Moment(17)
    found.update(torch.randn(5, 17).as_subclass(Uneven))
    sums = found._sums(torch.device("cpu"))
    assert not torch.equal(sums[:3, :3], sums[:3, :3].T)
    mean = found.mean()
    assert torch.equal(mean, mean.T)
    assert torch.equal(mean.triu(), (sums.triu() / 5).float())


def test_a_moment_is_uncentered():
    found = Moment(3)
    found.update(torch.full((10, 3), 2.0))
    assert torch.equal(found.mean(), torch.full((3, 3), 4.0))


def test_the_diagonal_alone_is_that_of_the_matrix():
    x = torch.randn(50, 9)
    whole, squares = Moment(9), Moment(9, diagonal=True)
    whole.update(x)
    squares.update(x)
    close(squares.mean(), whole.mean().diagonal())
    assert squares.mean().shape == (9,)


def test_a_long_sum_of_small_squares_on_a_large_one_loses_nothing():
    found = Moment(1)
    found.update(torch.full((1, 1), 4096.0))  # its square, 2^24, swallows a 1 in float32
    for _ in range(100):
        found.update(torch.ones(1, 1))
    assert float(found.mean()) == pytest.approx((2**24 + 100) / 101, rel=1e-7)


def test_a_decayed_moment_is_the_weighted_mean():
    a, b = torch.randn(6, 4), torch.randn(8, 4)
    found = Moment(4)
    found.update(a)
    found.decayed(0.25).update(b)
    assert found.count == 0.25 * 6 + 8
    wanted = (0.25 * a.double().T @ a.double() + b.double().T @ b.double()) / found.count
    close(found.mean(), wanted)


def test_the_past_alone_fades_and_keeps_its_mean():
    found, x = Moment(3), torch.randn(1, 3)
    found.update(x)
    close(found.decayed(1e-3).mean(), second_moment(x))


def test_sums_lie_where_they_are_wanted_and_carry_no_gradients():
    there, here = Moment(3, device="meta"), Moment(3)
    for found in (there, here):
        found.update(torch.randn(2, 3, requires_grad=True))
    assert there.mean().device.type == "meta"
    assert here.mean().device.type == "cpu"
    assert not here.mean().requires_grad


@pytest.mark.parametrize(("diagonal", "nbytes"), [(False, 8 * 5 * 5), (True, 8 * 5)])
def test_bytes_of_a_moment_are_those_of_its_sums(diagonal, nbytes):
    found = Moment(5, diagonal=diagonal)
    assert moment.moment_bytes(5, diagonal) == found._sums(torch.device("cpu")).nbytes == nbytes


def test_half_precision_is_summed_in_single():
    x = torch.randn(300, 5).to(torch.bfloat16)
    found = Moment(5)
    found.update(x)
    close(found.mean(), second_moment(x))


# -- kinds of layers ------------------------------------------------------------------------------


class One(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def collected(layer, batches, **options):
    model = One(layer)

    def forward():
        for batch in batches:
            model(batch)

    return collect(model, ["layer"], forward, CollectOptions(**options)).get("layer")


@pytest.mark.parametrize("shape", [(7, 6), (2, 5, 6), (2, 3, 4, 6), (6,)])
def test_linear_sees_tokens_and_samples(shape):
    batches = [torch.randn(shape), torch.randn(shape)]
    found = collected(nn.Linear(6, 3), batches)
    close(found.hessian, second_moment(torch.stack(batches)))
    close(found.diagonal, found.hessian.diagonal())
    assert found.count == 2 * torch.Size(shape[:-1]).numel()


def test_an_input_given_by_keyword_is_seen():
    model, x = nn.Linear(4, 2), torch.randn(9, 4)
    wrapped = One(model)
    found = collect(wrapped, ["layer"], lambda: model(input=x))["layer"]
    close(found.hessian, second_moment(x))


def unfolded(conv, x):
    """Rows by ``unfold``: images -> [positions * groups, columns], columns Cin, kh, kw."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = nn.functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    parts = nn.functional.unfold(x, conv.kernel_size, conv.dilation, 0, conv.stride)
    grouped = parts.unflatten(1, (conv.groups, -1))  # [N, groups, cols, positions]
    return grouped.permute(0, 3, 1, 2).reshape(-1, grouped.shape[2])


CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2)},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "same": {"kernel_size": (3, 2), "padding": "same"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "pointwise": {"kernel_size": 1},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even")  # which pads one side more
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv_sees_the_patches_that_it_multiplies(name):
    conv = nn.Conv2d(4, 6, **CONVOLUTIONS[name])
    batches = [torch.randn(2, 4, 9, 7), torch.randn(1, 4, 6, 8)]
    found = collected(conv, batches)
    close(found.hessian, second_moment(torch.cat([unfolded(conv, x) for x in batches])))


@pytest.mark.parametrize("conv_layout", ["spatial", "channel"])
def test_columns_of_a_conv_are_those_of_its_matrix(conv_layout):
    """tr(W H W^T) is the mean square of the outputs only if columns match (oracle: the conv)."""
    conv = nn.Conv2d(4, 6, (3, 2), padding=1, bias=False).requires_grad_(False)
    x = torch.randn(3, 4, 8, 8)
    spec = QuantSpec(conv_layout=conv_layout)
    matrix = Partition.of(tuple(conv.weight.shape), Layout.CONV, spec).to_matrix(conv.weight)
    hessian = collected(conv, [x], conv_layouts={"layer": conv_layout}).hessian
    wanted = float(conv(x).double().square().sum(dim=1).mean())
    assert float((matrix @ hessian @ matrix.T).trace()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_other_order_of_columns_is_a_permutation(groups):
    conv, x = nn.Conv2d(4, 6, (3, 2), groups=groups), torch.randn(3, 4, 8, 8)
    spatial, channel = (
        collected(conv, [x], conv_layouts={"layer": layout}).hessian
        for layout in ("spatial", "channel")
    )
    order = torch.arange(len(spatial)).view(-1, 3, 2).movedim(0, -1).reshape(-1)
    close(channel, spatial[order][:, order])
    assert not torch.equal(channel, spatial)


@pytest.mark.parametrize("chunk", [1, 40, 100])
def test_patches_are_cut_out_a_few_at_a_time_with_the_same_result(chunk, monkeypatch):
    conv = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2)  # 18 columns, 2 rows per position
    x = torch.randn(2, 4, 9, 7)
    kind, draw = layer_inputs.LayerInput.of(conv), torch.Generator()
    whole = list(kind.rows(x, 10**6, draw))
    monkeypatch.setattr(layer_inputs, "_CHUNK", chunk)
    parts = list(kind.rows(x, 10**6, draw))
    assert len(whole) == 1
    assert torch.equal(torch.cat(parts), whole[0])
    assert {len(part) for part in parts[:-1]} == {2 * max(1, chunk // 36)}


def test_positions_up_to_the_limit_are_all_seen_and_one_more_is_drawn_once():
    conv, x = nn.Conv2d(1, 1, 1), torch.arange(20.0).view(1, 1, 4, 5)
    kind = layer_inputs.LayerInput.of(conv)
    for limit in (19, 20, 21):
        (rows,) = kind.rows(x, limit, torch.Generator().manual_seed(0))
        seen = rows.flatten().tolist()
        assert len(set(seen)) == len(seen) == min(limit, 20)
        assert seen == sorted(seen)  # in the order of memory


def test_an_image_alone_is_a_batch_of_one():
    conv, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(2, 6, 5)
    close(collected(conv, [x]).hessian, collected(conv, [x[None]]).hessian)


def test_positions_of_large_images_are_drawn_by_the_seed():
    conv, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(2, 2, 20, 20)
    some = [collected(conv, [x], max_positions=60, seed=seed) for seed in (0, 0, 1)]
    assert [found.count for found in some] == [60, 60, 60]
    assert torch.equal(some[0].hessian, some[1].hessian)
    assert not torch.equal(some[0].hessian, some[2].hessian)
    every = collected(conv, [x])
    assert every.count == 800
    # A mean over a sample, not a sum, and over both images.
    lost = (some[0].diagonal - every.diagonal).norm() / every.diagonal.norm()
    assert 0 < float(lost) < 0.3


def test_a_new_batch_draws_other_positions():
    conv, x = nn.Conv2d(1, 1, 1), torch.arange(100.0).view(1, 1, 10, 10)
    once, twice = (collected(conv, [x] * n, max_positions=3).hessian for n in (1, 2))
    assert float(once) != float(twice)


def test_embedding_counts_look_ups():
    index = torch.tensor([[0, 2, 2], [4, 2, 0]])
    found = collected(nn.Embedding(6, 3), [index, index[:1]])
    assert found.row_counts.tolist() == [3, 0, 5, 0, 1, 0]
    assert found.row_counts.dtype == torch.float32
    assert found.hessian is None
    assert found.count == 9


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(8, 6), torch.randn(5, 8)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 7, 7)),
        (
            nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", groups=2),
            torch.randn(2, 4, 7, 7),
        ),
        (nn.Embedding(10, 4), torch.tensor([[1, 9, 1]])),
    ],
    ids=["linear", "conv", "grouped", "embedding"],
)
@pytest.mark.parametrize("conv_layout", ["spatial", "channel"])
def test_a_quantized_layer_has_the_statistics_of_the_dense_one(layer, x, conv_layout):
    dense = collected(layer, [x], conv_layouts={"layer": conv_layout})
    model = One(layer)
    weight = swap_in(model, "layer", QuantSpec(d=2, K=4, conv_layout=conv_layout))
    for part in weight.state_dict().values():
        part.zero_()
    found = collect(model, ["layer"], lambda: model(x))["layer"]
    for name in ("hessian", "row_counts"):
        a, b = getattr(dense, name), getattr(found, name)
        assert (a is None and b is None) or torch.equal(a, b)


def test_the_diagonal_alone_is_kept_on_request():
    x = torch.randn(20, 6)
    found = collected(nn.Linear(6, 3), [x], diagonal=True)
    assert found.hessian is None
    close(found.diagonal, second_moment(x).diagonal())


# -- sharing --------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.o = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        h = self.norm(x)
        return x + self.o(torch.tanh(self.q(h)) * self.k(h) + self.v(h))


def test_layers_of_one_input_share_one_matrix():
    model, batches = Attention(), [torch.randn(3, 8), torch.randn(4, 8)]
    with Collector(model, "qkvo") as collector:
        for x in batches:
            model(x)
    moments = collector.moments
    assert moments["q"] is moments["k"] is moments["v"]
    assert moments["o"] is not moments["q"]
    found = collector.statistics()
    assert found["q"].hessian is found["k"].hessian is found["v"].hessian
    assert found["q"].count == 7  # the three of them add it once
    close(found["q"].hessian, second_moment(model.norm(torch.cat(batches))))


def test_equal_values_are_not_one_input():
    model = Attention()
    found = collect(model, "qk", lambda: (model.q(torch.ones(2, 8)), model.k(torch.ones(2, 8))))
    assert found["q"].hessian is not found["k"].hessian


def test_an_input_changed_in_place_is_another_input():
    model, x = Attention(), torch.ones(2, 8)
    found = collect(model, "qk", lambda: (model.q(x), model.k(x.mul_(3))))
    assert float(found["q"].hessian[0, 0]) == 1
    assert float(found["k"].hessian[0, 0]) == 9


def test_layers_that_part_ways_get_matrices_of_their_own():
    model, x, y = Attention(), torch.randn(2, 8), torch.randn(3, 8)

    def forward():
        model.q(x), model.k(x)
        model.q(y), model.k(2 * y)

    found = collect(model, "qk", forward)
    close(found["q"].hessian, second_moment(torch.cat([x, y])))
    close(found["k"].hessian, second_moment(torch.cat([x, 2 * y])))


def test_a_layer_that_is_called_less_often_gets_a_matrix_of_its_own():
    model, x, y = Attention(), torch.randn(2, 8), torch.randn(3, 8)
    found = collect(model, "qk", lambda: (model.q(x), model.k(x), model.q(y)))
    close(found["q"].hessian, second_moment(torch.cat([x, y])))
    close(found["k"].hessian, second_moment(x))


def test_a_late_comer_does_not_inherit_what_it_did_not_see():
    model, x, y = Attention(), torch.randn(2, 8), torch.randn(3, 8)
    found = collect(model, "qk", lambda: (model.q(x), model.q(y), model.k(y)))
    close(found["k"].hessian, second_moment(y))


def test_a_late_comer_does_not_join_by_an_input_of_the_past():
    model, x, y = Attention(), torch.randn(2, 8), torch.randn(3, 8)
    found = collect(model, "qk", lambda: (model.q(x), model.q(y), model.k(x)))
    close(found["q"].hessian, second_moment(torch.cat([x, y])))
    close(found["k"].hessian, second_moment(x))


def test_layers_that_cut_one_image_differently_share_nothing():
    model = nn.ModuleDict({"a": nn.Conv2d(2, 3, 3, padding=1), "b": nn.Conv2d(2, 3, 1)})
    x = torch.randn(1, 2, 5, 5)
    found = collect(model, "ab", lambda: (model["a"](x), model["b"](x)))
    assert found["a"].hessian.shape == (18, 18)
    close(found["b"].hessian, second_moment(unfolded(model["b"], x)))


def test_a_new_tensor_in_the_place_of_a_dead_one_is_another():
    identities, serials = TensorSerials(), set()
    for _ in range(20):
        x = torch.ones(3)  # its id() is that of the one before
        serials.add(identities.serial(x))
        assert identities.serial(x) in serials
        del x
    assert len(serials) == 20


def test_a_layer_that_runs_twice_sees_both():
    model, x = Attention(), torch.randn(2, 8)
    found = collect(model, "qk", lambda: (model.q(x), model.k(x), model.q(x), model.k(x)))
    assert found["q"].count == 4
    assert found["q"].hessian is found["k"].hessian


def test_sharing_can_be_switched_off():
    model = Attention()
    forward = lambda: model(torch.randn(3, 8))  # noqa: E731
    found = collect(model, "qk", forward, CollectOptions(share=False))
    assert found["q"].hessian is not found["k"].hessian


# -- hooks and errors -----------------------------------------------------------------------------


def test_a_layer_that_never_runs_has_no_statistics():
    model = Attention()
    assert set(collect(model, "qk", lambda: model.q(torch.ones(1, 8)))) == {"q"}


def test_no_hook_is_left_behind():
    model = Attention()
    with pytest.raises(ZeroDivisionError):
        collect(model, "qkvo", lambda: 1 / 0)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_decay_reaches_a_shared_moment_once():
    model, x = Attention(), torch.randn(4, 8)
    with Collector(model, "qk") as collector:
        model.q(x), model.k(x)
        collector.decayed(0.5)
    assert collector.statistics()["k"].count == 2


def test_statistics_carry_no_gradients():
    model = Attention()
    found = collect(model, "q", lambda: model(torch.randn(3, 8, requires_grad=True)))
    assert not found["q"].hessian.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused_in_one_line(bad):
    with pytest.raises(SpecError, match="'layer': its inputs are NaN or infinite") as caught:
        collected(nn.Linear(2, 2), [torch.tensor([[1.0, bad]])])
    assert "\n" not in str(caught.value)


def test_a_layer_of_another_kind_is_refused():
    with pytest.raises(SpecError, match="'layer': no input statistics for a LayerNorm"):
        collected(nn.LayerNorm(3), [])
