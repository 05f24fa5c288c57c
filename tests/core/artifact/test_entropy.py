"""Entropy coding: constriction writes it, numba reads it; E1 to E6 of FORMAT.md."""

from __future__ import annotations

import dataclasses

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import changes, damaged

from dpq_core.artifact.entropy import fit as entropy_fit
from dpq_core.artifact.entropy import stored, varint
from dpq_core.artifact.entropy.coding import Decoder, Model, Table
from dpq_core.errors import ArtifactError, SpecError


def ramp(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Symbols that follow a slow random walk, in three groups of different spread."""
    generator = np.random.default_rng(seed)
    level = np.cumsum(generator.normal(size=n) * 0.2)
    groups = generator.integers(0, 3, n).astype(np.uint8)
    symbols = np.round(level + generator.normal(size=n) * (1 + groups)).astype(np.int32)
    return symbols, groups


def reloaded(model: Model) -> Model:
    reader = varint.Reader(stored.to_bytes(model), "model")
    found = stored.from_reader(reader, "model")
    reader.finish()
    return found


def ideal_bits(model: Model, symbols: np.ndarray, groups: np.ndarray) -> float:
    """Sum of -log2 of the probabilities, by a plain loop over E3."""
    mean, bits = model.start, 0.0
    for s, g in zip(symbols.tolist(), groups.tolist(), strict=True):
        table = model.tables[model.context[g, int((model.thresholds <= mean).sum())]]
        share = table.frequencies[np.searchsorted(table.symbols, s)]
        bits -= np.log2(share / 2**model.precision)
        mean += (16 * s * int(model.scale[g]) - mean) >> 1
    return bits


@pytest.mark.parametrize("bins", [1, 2, 7, 16])
def test_what_was_coded_comes_back(bins: int) -> None:
    """E1, E2, E3, E4, E5: through bytes, with a model that went through bytes."""
    symbols, groups = ramp()
    model = entropy_fit.fit([(symbols, groups)], groups=3, bins=bins, scale=np.array([1, 2, 3]))
    data = model.encode(symbols, groups)
    assert np.array_equal(Decoder(reloaded(model)).decode(data, groups, "x"), symbols)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-(2**24), 2**24), min_size=0, max_size=50),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_any_symbols_come_back(values: list[int], groups: int, bins: int) -> None:
    symbols = np.array(values, np.int32)
    of = (np.arange(len(values)) % groups).astype(np.uint16)
    model = entropy_fit.fit([(symbols, of)], groups=groups, bins=bins)
    data = model.encode(symbols, of)
    assert np.array_equal(Decoder(reloaded(model)).decode(data, of, "x"), symbols)


def test_it_takes_the_bits_that_the_model_says() -> None:
    """Within a word per table of -log2 p: nothing is lost to the coder."""
    symbols, groups = ramp(3000)
    model = entropy_fit.fit([(symbols, groups)], groups=3, bins=5)
    data = model.encode(symbols, groups)
    ideal = ideal_bits(model, symbols, groups) / 8
    assert ideal < len(data) < ideal + 6 * len(model.tables) + 2


def test_contexts_pay_off() -> None:
    symbols, groups = ramp(20_000)
    plain = entropy_fit.fit([(symbols, groups)], groups=3, bins=1)
    followed = entropy_fit.fit([(symbols, groups)], groups=3, bins=12)
    sizes = [len(m.encode(symbols, groups)) + len(stored.to_bytes(m)) for m in (plain, followed)]
    assert sizes[1] < 0.8 * sizes[0]


def test_the_library_reads_what_we_read() -> None:
    """E4: constriction's own decoder gives the same symbols for a model of one table."""
    symbols = np.random.default_rng(1).geometric(0.3, 5000).astype(np.int32)
    groups = np.zeros(5000, np.uint8)
    model = entropy_fit.fit([(symbols, groups)], groups=1)
    (table,) = model.tables
    data = model.encode(symbols, groups)
    reader = varint.Reader(data, "x")
    count = reader.take()
    words = np.frombuffer(reader.rest(), "<u4")
    assert len(words) == count
    weights = (table.frequencies << (24 - model.precision)) - 1
    family = constriction.stream.model.Categorical(weights.astype(np.float64), perfect=False)
    coder = constriction.stream.stack.AnsCoder(words.copy())
    assert np.array_equal(table.symbols[coder.decode(family, 5000)], symbols)


@pytest.mark.parametrize("size", [2, 100, 5000, 40_000])
def test_large_alphabets_take_finer_frequencies(size: int) -> None:
    symbols = np.arange(size, dtype=np.int32)
    groups = np.zeros(size, np.uint8)
    model = entropy_fit.fit([(symbols, groups)], groups=1)
    assert all(t.frequencies.sum() == 1 << model.precision for t in model.tables)
    assert all(t.frequencies.min() >= 1 for t in model.tables)
    assert np.array_equal(
        Decoder(model).decode(model.encode(symbols, groups), groups, "x"), symbols
    )


def test_several_sequences_share_a_model() -> None:
    """Each begins anew, so that it can be decoded alone."""
    parts = [ramp(500, seed) for seed in range(4)]
    model = entropy_fit.fit(parts, groups=3, bins=4)
    decoder = Decoder(model)
    for symbols, groups in reversed(parts):
        assert np.array_equal(decoder.decode(model.encode(symbols, groups), groups, "x"), symbols)


def test_a_foreign_symbol_cannot_be_coded() -> None:
    symbols, groups = ramp(100)
    model = entropy_fit.fit([(symbols, groups)], groups=3)
    with pytest.raises(SpecError, match="not in the table of its context"):
        model.encode(np.full(1, 999, np.int32), np.zeros(1, np.uint8))


def test_too_large_symbols_are_refused() -> None:
    groups = np.zeros(1, np.uint8)
    with pytest.raises(SpecError, match="use a larger step"):
        entropy_fit.fit([(np.array([2**24 + 1]), groups)], groups=1)
    many = np.arange(70_000, dtype=np.int32)
    with pytest.raises(SpecError, match="too many to code"):
        entropy_fit.fit([(many, np.zeros(70_000, np.uint8))], groups=1)


@pytest.mark.parametrize("kind", ["cut", "longer", "flipped", "empty"])
def test_damaged_words_are_noticed(kind: str) -> None:
    """E5, E6: one line, never a wrong result that passes."""
    symbols, groups = ramp(2000)
    model = entropy_fit.fit([(symbols, groups)], groups=3, bins=3)
    data = bytearray(model.encode(symbols, groups))
    if kind == "flipped":
        data[-5] ^= 16
    damaged = {"cut": data[:-4], "longer": data + bytes(4), "flipped": data, "empty": data[:0]}[
        kind
    ]
    with pytest.raises(ArtifactError, match="x: "):
        Decoder(model).decode(bytes(damaged), groups, "x")


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(made=changes(), in_words=changes(1))
def test_no_damage_does_more_than_raise(
    made: list[tuple[int, int]], in_words: list[tuple[int, int]]
) -> None:
    """E1, E2: any bytes as a model or as words are an ArtifactError or a decodable sequence."""
    symbols, groups = ramp(200)
    model = entropy_fit.fit([(symbols, groups)], groups=3, bins=3)
    raw = damaged(stored.to_bytes(model), made)
    words = damaged(model.encode(symbols, groups), in_words)
    try:
        found = stored.from_reader(varint.Reader(raw, "m"), "m")
        if len(found.scale) >= 3:
            Decoder(found).decode(words, groups, "w")
    except ArtifactError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": 9}, "too few"),
        ({"thresholds": np.array([5, 5])}, "do not ascend"),
        ({"tables": ()}, "0 tables"),
    ],
)
def test_impossible_models_are_refused(change: dict, message: str) -> None:
    """E1: sizes and order are checked before tables are built."""
    table = Table(symbols=np.arange(2), frequencies=np.array([4095, 1]))
    model = Model(
        precision=12,
        scale=np.ones(1, np.int64),
        start=0,
        thresholds=np.array([1, 2]),
        context=np.zeros((1, 3), np.uint16),
        tables=(table,),
    )
    raw = stored.to_bytes(dataclasses.replace(model, **change))
    with pytest.raises(ArtifactError, match=message):
        stored.from_reader(varint.Reader(raw, "m"), "m")


def test_varints() -> None:
    values = [0, 1, 127, 128, 2**40, 2**63 - 1]
    reader = varint.Reader(varint.pack(values), "v")
    assert [reader.take() for _ in values] == values
    signed = [0, -1, 1, -64, 64, 2**40, -(2**40)]
    reader = varint.Reader(varint.pack_signed(signed), "v")
    assert [reader.take_signed(2**41) for _ in signed] == signed
    reader.finish()
    with pytest.raises(ArtifactError, match="over the limit 7"):
        varint.Reader(varint.pack([8]), "v").take(7)
    with pytest.raises(ArtifactError, match="truncated"):
        varint.Reader(b"\x80", "v").take()
    with pytest.raises(ArtifactError, match="1 bytes are left over"):
        varint.Reader(b"\x00", "v").finish()
