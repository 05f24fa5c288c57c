"""`dpq plan`, --target-size and fractional --bits: on disk what was said, never more."""

from __future__ import annotations

import pytest
from cli_runs import dpq, install_toy, write_mlp


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    install_toy(monkeypatch, tmp_path / "site")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return write_mlp(tmp_path_factory.mktemp("plan") / "net.safetensors", hidden=4096)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_plan_writes_nothing_and_says_what_compress_stores(net, tmp_path):
    before = sorted(net.parent.rglob("*"))
    shown = dpq("plan", "-a", "mlp", net, "--bits", 3)
    assert shown.code == 0
    assert "nothing is" in shown.err
    assert "peak memory" in shown.err
    plan = dpq("plan", "-a", "mlp", net, "--bits", 3, "--json").json
    assert sorted(net.parent.rglob("*")) == before
    words = [
        "compress",
        "-a",
        "mlp",
        net,
        "-o",
        tmp_path / "out",
        "--bits",
        3,
        "--iterations",
        1,
        "--no-probe",
    ]
    real = dpq(*words, "--json").json
    assert [t["nbytes"] for t in plan["tensors"]] == [t["nbytes"] for t in real["tensors"]]
    assert 0 <= plan["nbytes"] - real["nbytes"] < 0.01 * real["nbytes"] + 200
    assert plan["seconds"] > 0
    assert plan["peak_memory"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("size", ["130KB", "200KB", "350KB"])
def test_a_target_size_is_met_within_one_percent_and_never_exceeded(net, tmp_path, size):
    words = ["-a", "mlp", net, "--target-size", size]
    plan = dpq("plan", *words, "--json").json
    done = dpq(
        "compress", *words, "-o", tmp_path / "out", "--iterations", 1, "--no-probe", "--json"
    )
    assert done.code == 0, done.err
    budget = int(size.removesuffix("KB")) * 1000
    assert plan["budget"] == budget
    assert size_of(tmp_path / "out") == done.json["nbytes"] <= plan["nbytes"] <= budget
    assert done.json["nbytes"] >= 0.97 * budget  # three matrices leave coarse steps


@pytest.mark.slow
def test_fractional_bits_count_every_byte(net, tmp_path):
    done = dpq(
        "compress", "-a", "mlp", net, "-o", tmp_path / "out", "--bits", "2.75", "--iterations", 1,
        "--no-probe", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert 2.6 < done.json["bits_per_weight"] <= 2.75


def test_overrides_pin_and_keep(net):
    words = ["plan", "-a", "mlp", net, "--target-size", "1.4MB", "--json"]
    plan = dpq(*words, "--override", "w1=keep", "--override", "w2=d=8,K=16").json
    specs = {t["name"]: t["spec"] for t in plan["tensors"]}
    assert specs["w1"] is None
    assert (specs["w2"]["d"], specs["w2"]["K"]) == (8, 16)
    assert dpq(*words, "--override", "nothing*=keep").code == 1


def test_a_budget_that_cannot_be_met_is_one_line(net):
    done = dpq("plan", "-a", "mlp", net, "--target-size", "5KB")
    assert done.code == 1
    assert "too small" in done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        (["-a", "llama", "builtin:tiny-llama", "--bits", 4, "--no-data"], True),
        (["-a", "llama", "builtin:tiny-llama", "--bits", 4], False),
        (["-a", "llama", "builtin:tiny-llama", "--d", 1, "--K", 256, "--no-data"], False),
        (["-a", "diffusion", "builtin:tiny-dit", "--bits", 2], False),
    ],
)
def test_a_plan_warns_where_a_language_model_gets_few_bits_and_no_data(words, warned):
    plan = dpq("plan", *words, "--json").json
    assert bool(plan["warning"]) == warned
    shown = dpq("plan", *words).err
    assert ("data" in shown.split("warning")[-1]) or not warned
    assert ("and the time of looking at data" in " ".join(shown.split())) == (
        "--no-data" not in words
    )
