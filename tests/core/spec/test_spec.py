"""QuantSpec: presets, validation, JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from strategies import specs

from dpq_core.errors import SpecError
from dpq_core.spec import SPEC_VERSION, KMeansSpec, QuantSpec


@pytest.mark.parametrize(("bits", "d"), [(1, 8), (2, 4), (3, 3), (4, 2)])
def test_presets_are_the_papers(bits, d):
    spec = QuantSpec.preset(bits)
    assert (spec.d, spec.K, spec.code_bits) == (d, 256, 8)


@given(specs)
def test_json_round_trip(spec):
    assert QuantSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(("K", "bits"), [(2, 1), (3, 2), (16, 4), (17, 5), (256, 8), (65_536, 16)])
def test_code_bits(K, bits):
    assert QuantSpec(K=K).code_bits == bits


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(SpecError) as caught:
        QuantSpec(d=0, K=1, scope="layer", seed=-1)
    for field in ("d must be", "K must be", "scope must be", "seed must be"):
        assert field in str(caught.value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"dd": 4}, "unknown key dd"),
        ({"version": SPEC_VERSION + 1}, "version"),
        ({"kmeans": {"iters": 3}}, "unknown key iters"),
        ({"kmeans": 3}, "kmeans must be"),
        ({"d": "4"}, "d must be"),
        ({"d": True}, "d must be"),
        ({"codebook_share": float("nan")}, "codebook_share"),
    ],
)
def test_unknown_and_wrong_values_are_refused(data, text):
    with pytest.raises(SpecError, match=text):
        QuantSpec.from_json(data)


def test_preset_of_other_widths_is_an_error():
    with pytest.raises(SpecError, match="1, 2, 3 or 4"):
        QuantSpec.preset(5)


def test_kmeans_spec_reports_its_mistakes():
    with pytest.raises(SpecError, match=r"iterations.*init"):
        KMeansSpec(iterations=-1, init="best")
