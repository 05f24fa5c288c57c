"""Data by default, `--preset best` and planned bytes, from the command line to the file."""

from __future__ import annotations

import pytest
from cli_runs import dpq
from llama_models import SHAPES

from dpq_core.artifact import Artifact

DATA = ("--context", 16, "--samples", 8, "--batch-size", 4, "--validation-samples", 4)


@pytest.fixture(scope="module")
def source(make_folder):
    return make_folder(**SHAPES["gqa-tied"])


@pytest.mark.slow
def test_best_chooses_codes_by_data_and_calibrates(source, tmp_path):
    words = ("compress", source, "-a", "llama", "--d", 2, "--K", 16, *DATA)
    standard = dpq(*words, "-o", tmp_path / "standard", "--json").json
    done = dpq(*words, "-o", tmp_path / "best", "--preset", "best", "--steps", 4, "--json").json
    assert done["calibration"]["after"] < done["calibration"]["before"]
    assert done["segments"]
    assert not done["data_free"]
    best = Artifact.open(tmp_path / "best")
    best.verify()
    assert [entry.use for entry in best.manifest.data] == ["compress", "calibrate"]
    assert {entry.description for entry in best.manifest.data} == {
        "8 windows of 16 tokens of the model's own text"
    }
    spec = best.read_pq("model.layers.0.mlp.up_proj.weight").spec
    assert spec.assignment.method == "ldlq+icm"
    assert not list(tmp_path.glob("best.*"))  # what was there before calibration has gone
    assert done["nbytes"] <= 1.02 * standard["nbytes"]


@pytest.mark.slow
def test_a_plan_spends_bytes_where_the_data_says(make_folder):
    source = make_folder(hidden_size=192, intermediate_size=512)
    words = ("plan", source, "-a", "llama", "--bits", 4.5, "--json", *DATA)
    blind, seeing = dpq(*words, "--no-data").json, dpq(*words).json
    assert {t["name"] for t in blind["tensors"]} == {t["name"] for t in seeing["tensors"]}
    assert blind["tensors"] != seeing["tensors"]
    assert seeing["nbytes"] <= seeing["budget"]


@pytest.mark.slow
def test_best_spends_the_bytes_of_its_width_where_they_count(make_folder):
    source = make_folder(hidden_size=192, intermediate_size=512)
    words = ("plan", source, "-a", "llama", "--bits", 3, "--json")
    standard, best = dpq(*words).json, dpq(*words, "--preset", "best", *DATA).json
    blind = dpq(*words, "--preset", "best", "--no-data").json
    assert widths(blind) == widths(standard)
    assert len(widths(best)) > len(widths(blind))
    assert 0.97 * blind["nbytes"] < best["nbytes"] <= blind["nbytes"]


def widths(plan):
    """The different subvector lengths, codebook sizes and rates of a trellis."""
    specs = [t["spec"] for t in plan["tensors"] if t["spec"]]
    return {(spec["d"], spec["K"], spec.get("trellis_rate", 0)) for spec in specs}
