"""make_segments() and passes(): who is quantized when, and what one pass over the data collects."""

from __future__ import annotations

import pytest

from dpq_core.data.sequential.capture import BlockTrace, Call, Trace
from dpq_core.data.sequential.segments import LayerGroup, Segment, Source, make_segments, passes
from dpq_core.data.statistics.layer_inputs import LayerInput
from dpq_core.tensor.partition import Layout


def traced(calls, blocks=("a", "b"), *, replays=(True, True), wirings=((0,), (0,)), repeated=False):
    """A trace; ``calls`` are (path, segment, serial of the input)."""
    return Trace(
        blocks=tuple(
            BlockTrace(path=path, replays=replay, wiring=wiring)
            for path, replay, wiring in zip(blocks, replays, wirings, strict=True)
        ),
        calls=tuple(Call(path=path, segment=segment, serial=s) for path, segment, s in calls),
        repeated=repeated,
    )


def segments_of(calls, unseen=None, *, store_inputs=True, **trace):
    return make_segments(traced(calls, **trace), unseen or {}, store_inputs=store_inputs)


def stages_of(calls):
    """The stages of calls (path, serial) within one block, as (paths, stop)."""
    found = segments_of([(path, 1, serial) for path, serial in calls], blocks=("a",),
                        replays=(True,), wirings=(None,))  # fmt: skip
    return [(group.paths, group.stop) for group in found[1].layer_groups]


def test_layers_outside_of_blocks_have_segments_of_their_own():
    calls = [("first", 0, 1), ("a.x", 1, 2), ("mid", 2, 3), ("b.x", 3, 4), ("last", 4, 5)]
    found = segments_of(calls)
    assert [(s.name, s.block, s.until) for s in found] == [
        ("before a", None, "a"),
        ("a", "a", None),
        ("before b", None, "b"),
        ("b", "b", None),
        ("after all blocks", None, None),
    ]
    assert [[group.paths for group in s.layer_groups] for s in found] == [
        [("first",)], [("a.x",)], [("mid",)], [("b.x",)], [("last",)]
    ]  # fmt: skip
    assert all(group.shared for s in found for group in s.layer_groups)


def test_a_model_without_blocks_is_one_segment():
    (found,) = segments_of([("x", 0, 1), ("y", 0, 2)], blocks=(), replays=(), wirings=())
    assert (found.name, found.block, found.until, found.source) == (
        "after all blocks", None, None, Source.PREFIX
    )  # fmt: skip
    assert [group.paths for group in found.layer_groups] == [("x",), ("y",)]


@pytest.mark.parametrize(
    ("replays", "wirings", "sources", "kept"),
    [
        ((True, True, True), (None, (0,), (0,)), "capture chain chain", (None, (0,), (0,))),
        ((True, True, True), (None, None, (0,)), "capture capture chain", (None, None, (0,))),
        ((True, False, True), (None, (0,), (0,)), "capture prefix capture", (None, None, None)),
        ((False, True, True), ((0,), (0,), None), "prefix capture capture", (None, None, None)),
    ],
)
def test_inputs_are_chained_where_the_block_before_was_run_alone(replays, wirings, sources, kept):
    how = {"blocks": ("a", "b", "c"), "replays": replays, "wirings": wirings}
    found = [s for s in segments_of([], **how) if s.block]
    assert " ".join(s.source for s in found) == sources
    assert tuple(s.wiring for s in found) == kept
    for changes in ({"store_inputs": False}, {"repeated": True}):
        found = segments_of([], **how, **changes)
        assert {s.source for s in found} == {Source.PREFIX}
        assert {s.wiring for s in found} == {None}


def test_a_layer_belongs_to_the_segment_of_its_first_call():
    calls = [("head", 0, 1), ("a.x", 1, 2), ("head", 2, 3), ("head", 0, 4)]
    found = segments_of(calls)
    assert [[group.paths for group in s.layer_groups] for s in found] == [
        [("head",)], [("a.x",)], [], [], []
    ]  # fmt: skip


def test_where_blocks_repeat_every_pass_runs_to_the_end_of_the_model():
    calls = [("first", 0, 1), ("a.x", 1, 2), ("a.y", 1, 3), ("a.x", 3, 4)]
    found = segments_of(calls, repeated=True)
    assert {(s.block, s.until) for s in found} == {(None, None)}
    assert [s.name for s in found[:2]] == ["before a", "a"]
    assert [(group.paths, group.stop) for s in found for group in s.layer_groups] == [
        (("first",), None), (("a.x",), None), (("a.y",), None)
    ]  # fmt: skip


def test_layers_that_did_not_run_come_last_in_their_block():
    found = segments_of([("a.x", 1, 2)], {"a": ["a.e1", "a.e2"], "b": []})
    assert [(group.paths, group.shared) for group in found[1].layer_groups] == [
        (("a.x",), True),
        (("a.e1", "a.e2"), False),
    ]
    assert found[3].layer_groups == ()


def test_layers_of_one_input_are_one_group_and_a_pass_ends_at_the_last_of_them():
    calls = [("q", 1), ("k", 1), ("v", 1), ("o", 2), ("up", 3), ("gate", 3), ("down", 4)]
    assert stages_of(calls) == [
        (("q", "k", "v"), "v"),
        (("o",), "o"),
        (("up", "gate"), "gate"),
        (("down",), "down"),
    ]


def test_a_pass_does_not_end_before_the_last_call_of_its_layers():
    calls = [("x", 1), ("y", 2), ("x", 3), ("z", 4)]
    assert stages_of(calls) == [(("x",), None), (("y",), "y"), (("z",), "z")]
    calls = [("x", 1), ("y", 2), ("w", 1), ("z", 4)]  # w gets the input of x, after y ran
    assert stages_of(calls) == [(("x", "w"), "w"), (("y",), "y"), (("z",), "z")]


def test_layers_that_share_some_inputs_only_are_apart():
    calls = [("x", 1), ("y", 1), ("x", 2), ("y", 3)]
    assert [paths for paths, _ in stages_of(calls)] == [("x",), ("y",)]


# -- passes ---------------------------------------------------------------------------------------

INPUTS = {
    **{path: LayerInput(layout=Layout.LINEAR, cols=10) for path in "qkvo"},  # 800 bytes
    "wide": LayerInput(layout=Layout.LINEAR, cols=20),  # 3200 bytes
    "table": LayerInput(layout=Layout.EMBEDDING, cols=50),  # 400 bytes
    **{f"e{i}": LayerInput(layout=Layout.LINEAR, cols=10) for i in range(4)},
}
QKV = LayerGroup(paths=("q", "k", "v"), stop="v", stop_call=3)
OUT = LayerGroup(paths=("o",), stop="o", stop_call=4)
WIDE = LayerGroup(paths=("wide",), stop="wide", stop_call=5)


def passes_of(*layer_groups, budget, each=False):
    segment = Segment(
        name="a", block="a", until=None, source=Source.CHAIN, wiring=None, layer_groups=layer_groups
    )
    return [(s.paths, s.stop) for s in passes(segment, INPUTS, budget, each=each)]


def test_groups_share_a_pass_while_their_matrices_fit():
    all_of_it = (("q", "k", "v", "o", "wide"), "wide")
    assert passes_of(QKV, OUT, WIDE, budget=800 + 800 + 3200) == [all_of_it]
    assert passes_of(QKV, OUT, WIDE, budget=800 + 800 + 3200 - 1) == [
        (("q", "k", "v", "o"), "o"),
        (("wide",), "wide"),
    ]
    alone = [(("q", "k", "v"), "v"), (("o",), "o"), (("wide",), "wide")]
    assert passes_of(QKV, OUT, WIDE, budget=1599) == alone
    assert passes_of(QKV, OUT, WIDE, budget=0) == alone  # a single layer may exceed it
    assert passes_of(QKV, OUT, WIDE, budget=10**6, each=True) == alone
    assert passes_of(budget=10**6) == []


def test_a_pass_starts_to_count_anew():
    assert passes_of(WIDE, QKV, OUT, budget=3200 + 799) == [
        (("wide",), "wide"), (("q", "k", "v", "o"), "o")
    ]  # fmt: skip


def test_a_pass_ends_at_the_later_one_of_two_groups():
    around = LayerGroup(paths=("q", "wide"), stop="wide", stop_call=5)
    assert passes_of(around, OUT, budget=10**6) == [(("q", "wide", "o"), "wide")]


def test_a_shared_stage_needs_one_matrix_and_an_embedding_a_diagonal():
    table = LayerGroup(paths=("table",), stop="table", stop_call=0)
    assert passes_of(table, QKV, budget=1200) == [(("table", "q", "k", "v"), "v")]
    assert len(passes_of(table, QKV, budget=1199)) == 2


def test_a_pass_of_stages_that_are_not_over_at_a_layer_runs_on():
    open_end = LayerGroup(paths=("q", "k"))
    assert passes_of(open_end, OUT, budget=10**6) == [(("q", "k", "o"), None)]
    assert passes_of(OUT, open_end, budget=10**6) == [(("o", "q", "k"), None)]


def test_experts_have_matrices_of_their_own_and_share_passes_in_any_case():
    experts = LayerGroup(paths=("e0", "e1", "e2", "e3"), shared=False)
    assert passes_of(experts, budget=1600, each=True) == [
        (("e0", "e1"), None),
        (("e2", "e3"), None),
    ]
    assert [paths for paths, _ in passes_of(OUT, experts, budget=10**6, each=True)] == [
        ("o",), ("e0", "e1", "e2", "e3")
    ]  # fmt: skip
    assert passes_of(experts, budget=0) == [((path,), None) for path in experts.paths]
