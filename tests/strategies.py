"""Hypothesis strategies for specs, shapes and damaged files."""

from __future__ import annotations

from hypothesis import strategies as st

from dpq_core.spec import (
    CODEBOOK_DTYPES,
    CONV_LAYOUTS,
    INITS,
    KMeansSpec,
    PoolSpec,
    QuantSpec,
)

kmeans_specs = st.builds(
    KMeansSpec,
    iterations=st.integers(0, 100),
    tail=st.integers(0, 5),
    noise_power=st.floats(0, 4),
    init=st.sampled_from(INITS),
)


PLAIN_DTYPES = tuple(name for name in CODEBOOK_DTYPES if name != "int8")

extras = st.one_of(
    st.just({}),
    st.builds(dict, stages=st.integers(1, 3)),
    st.builds(dict, transform=st.just("rht")),
    st.builds(dict, permute=st.just(True), orientation=st.just("input")),
    st.builds(dict, group_scale=st.just(True), orientation=st.just("input")),
    st.builds(dict, codebook_dtype=st.just("int8"), stages=st.integers(1, 2)),
    st.builds(
        dict,
        codebook_dtype=st.sampled_from(["int8", "float16"]),
        pool=st.builds(
            PoolSpec,
            method=st.sampled_from(["greedy", "wkmeans"]),
            size=st.integers(0, 50),
            refine=st.integers(0, 2),
            packed=st.booleans(),
        ),
    ),
)
"""What came with version 2 of the spec, one at a time."""


def specs_up_to(*, d: int = 32, K: int = 65_536) -> st.SearchStrategy[QuantSpec]:
    """Valid specs of any kind with at most this subvector length and codebook size."""
    plain = plain_specs_up_to(d=d, K=K)
    return st.builds(lambda spec, extra: spec.replace(**extra), plain, extras)


def plain_specs_up_to(*, d: int = 32, K: int = 65_536) -> st.SearchStrategy[QuantSpec]:
    """Specs as version 1 has them: one code per subvector, codebooks stored as they are."""
    return st.builds(
        QuantSpec,
        d=st.integers(1, d),
        K=st.integers(2, K),
        scope=st.sampled_from(["auto", "tensor", "subspace", 1]),
        codebook_share=st.floats(0.01, 1),
        orientation=st.sampled_from(["input", "output"]),
        conv_layout=st.sampled_from(CONV_LAYOUTS),
        row_scale=st.booleans(),
        codebook_dtype=st.sampled_from(PLAIN_DTYPES),
        kmeans=kmeans_specs,
        seed=st.integers(0, 2**63 - 1),
    )


specs = specs_up_to()

matrix_shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
conv_shapes = st.tuples(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.sampled_from([1, 3])
)


def changes(most: int = 4, least: int = 1) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Places and bytes for ``damaged``; drawn at once, whatever the content's length."""
    change = st.tuples(st.integers(0, 2**30), st.integers(0, 255))
    return st.lists(change, min_size=least, max_size=most)


def damaged(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    """The content with some bytes changed."""
    result = bytearray(content)
    for place, byte in changes if result else ():
        result[place % len(result)] = byte
    return bytes(result)
