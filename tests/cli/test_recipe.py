"""`--recipe`: a file says what flags say; the command line wins; nothing in it is executed."""

from __future__ import annotations

import pytest
from cli_runs import dpq, install_toy, write_mlp
from typer.main import get_command

from dpq_cli.app import app

COMPRESS = {  # key: (as YAML writes it, as flags)
    "source": ("net", ["net"]),
    "output": ("out", ["--output", "out"]),
    "adapter": ("mlp", ["--adapter", "mlp"]),
    "preset": ("paper", ["--preset", "paper"]),
    "bits": ("1.75", ["--bits", "1.75"]),
    "target-size": ("0.8MB", ["--target-size", "0.8MB"]),
    "d": ("3", ["--d", "3"]),
    "K": ("64", ["--K", "64"]),
    "scope": ("4", ["--scope", "4"]),
    "orientation": ("output", ["--orientation", "output"]),
    "iterations": ("7", ["--iterations", "7"]),
    "init": ("kmeans++", ["--init", "kmeans++"]),
    "row_scale": ("false", ["--no-row-scale"]),
    "set": (
        "[stages=2, permute=true]",
        ["--set", "stages=2", "--set", "permute=true"],
    ),
    "override": ("a*=keep", ["--override", "a*=keep"]),
    "shard_size": ("1GB", ["--shard-size", "1GB"]),
    "data": ("false", ["--no-data"]),
    "steps": ("12", ["--steps", "12"]),
    "probe": ("false", ["--no-probe"]),
    "device": ("cpu", ["--device", "cpu"]),
    "seed": ("5", ["--seed", "5"]),
    "dry-run": ("true", ["--dry-run"]),
    "resume": ("true", ["--resume"]),
    "overwrite": ("true", ["--overwrite"]),
    "json": ("true", ["--json"]),
}


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    install_toy(monkeypatch, tmp_path / "site")


@pytest.fixture
def net(tmp_path):
    return write_mlp(tmp_path / "net.safetensors")


@pytest.fixture
def recipe(tmp_path):
    def write(text, version="version: 1\n"):
        path = tmp_path / "recipe.yaml"
        path.write_text(version + text)
        return path

    return write


def parsed(command, *words):
    """The parameters of a command line, the recipe's own left out."""
    found = get_command(app).commands[command]
    context = found.make_context(command, [str(word) for word in words])
    return {name: value for name, value in context.params.items() if name != "recipe"}


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_option_of_compress_can_be_in_a_recipe(recipe):
    lines = "".join(f"{key}: {text}\n" for key, (text, _) in COMPRESS.items())
    flags = [word for _, words in COMPRESS.values() for word in words]
    found = parsed("compress", "--recipe", recipe(lines))
    assert found == parsed("compress", *flags)
    assert len(found) == len(COMPRESS)


@pytest.mark.parametrize("key", COMPRESS)
def test_each_option_alone_is_what_its_flags_say(recipe, key):
    text, flags = COMPRESS[key]
    needed = [w for k in ("source", "output") if k != key for w in COMPRESS[k][1]]
    found = parsed("compress", *needed, "--recipe", recipe(f"{key}: {text}\n"))
    assert found == parsed("compress", *needed, *flags)


@pytest.mark.slow
def test_a_recipe_gives_the_bytes_of_the_flags(net, recipe, tmp_path):
    words = ["--override", "w2=keep", "--set", "stages=2,kmeans.tail=1", "--no-probe"]
    sizes = ["--d", 8, "--K", 16, "--iterations", 3, "--seed", 4]
    assert dpq("compress", net, "-a", "mlp", "-o", tmp_path / "flags", *sizes, *words).code == 0
    path = recipe(
        "adapter: mlp\noverride: w2=keep\nprobe: false\n"
        "spec:\n  d: 8\n  K: 16\n  seed: 4\n  stages: 2\n  kmeans: {iterations: 3, tail: 1}\n"
    )
    done = dpq("compress", net, "-o", tmp_path / "recipe", "--recipe", path)
    assert done.code == 0, done.err
    assert contents(tmp_path / "recipe") == contents(tmp_path / "flags")


@pytest.mark.parametrize(
    ("text", "words", "name", "value"),
    [
        ("K: 64", ["--K", "32"], "K", 32),
        ("spec: {K: 64}", ["--K", "32"], "K", 32),
        ("row_scale: false", ["--row-scale"], "row_scale", True),
        ("set: [K=64]", ["--K", "32"], "K", 32),
        ("set: K=64", [], "K", 64),
        ("set: kmeans.iterations=4", ["--iterations", "3"], "iterations", 3),
        ("set: 'pool.tau=0.1,stages=2'", [], "set", ["pool.tau=0.1", "stages=2"]),
        ("set: [stages=2]", ["--set", "stages=3"], "set", ["stages=2", "stages=3"]),
        ("spec: {stages: 2}", ["--set", "K=9"], "set", ["stages=2", "K=9"]),
        ("spec: {pool: {tau: 0.1}}", [], "set", ["pool.tau=0.1"]),
        ("spec: {permute: true, pool: none}", [], "set", ["permute=true", "pool=none"]),
        ("override: [a=keep]", ["--override", "b=4"], "override", ["a=keep", "b=4"]),
        ("bits: 2", ["--d", "4"], "bits", None),
        ("d: 4", ["--target-size", "1MB"], "d", None),
        ("spec: {d: 4}", ["--bits", "3"], "d", None),
        ("bits: 2", ["--K", "9"], "bits", 2.0),
    ],
)
def test_the_command_line_wins(recipe, text, words, name, value):
    path = recipe(text + "\n")
    for line in ([*words, "--recipe", path], ["--recipe", path, *words]):
        assert parsed("compress", "net", "-o", "out", *line)[name] == value


def test_options_of_the_adapter(net, recipe):
    path = recipe("rows: 7\nseed: 3\n")
    words = ["eval", net, "-a", "mlp", "--json"]
    plain = dpq(*words, "--rows", 7, "--seed", 3).json
    assert dpq(*words, "--recipe", path).json == plain
    assert "for 7 normal" in plain["result"]["metrics"][0]["protocol"]
    other = dpq(*words, "--rows", 9, "--recipe", path).json
    assert "for 9 normal" in other["result"]["metrics"][0]["protocol"]
    count = dpq("sample", net, "-a", "mlp", "--recipe", recipe("count: 2\n"), "--json").json
    assert len(count["texts"]) == 2


def test_plan_takes_the_recipe_of_compress(net, recipe):
    path = recipe("adapter: mlp\noutput: out\nbits: 1\niterations: 3\nresume: true\n")
    done = dpq("plan", net, "--recipe", path, "--json")
    assert done.code == 0, done.err
    assert {t["spec"]["d"] for t in done.json["tensors"] if t["spec"]} == {8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ovveride: [a=keep]", "unknown key 'ovveride'; did you mean override"),
        ("rows: 5", "unknown key 'rows'; "),  # an option of the adapter, but of `dpq eval`
        ("spec: {stage: 2}", "spec: unknown key 'stage'; did you mean stages"),
        ("spec: {pool: {tua: 1}}", "spec: pool: unknown key 'tua'; did you mean tau"),
        ("spec: {d: {a: 1}}", "spec: d is one value"),
        ("spec: 4", "write fields of QuantSpec"),
        ("spec: {K: [1, 2]}", "spec: K: write one value, not list"),
        ("d: 3\nspec: {d: 4}", "d is given twice, once in spec"),
        ("set: [stages]", "set: 'stages': write KEY=VALUE"),
        ("set: [K=3]\nK: 4", "K is given twice"),
        ("d: four", "d: 'four': "),
        ("K: 4.5", "K: '4.5': "),
        ("d: [1]", "d: write one value, not list"),
        ("d: 2024-01-01", "d: write one value, not date"),
        ("d: true", "d: true is no value of this option"),
        ("seed: -1", "seed: '-1': "),
        ("row_scale: 1", "row_scale: write true or false, not 1"),
        ("override: {a: keep}", "override: write one value, not dict"),
        ("d:", "d has no value; leave it out"),
        ("d: 3\nd: 4", "'d' is given twice"),
        ("dry-run: true\ndry_run: true", "dry_run is given twice"),
        ("d: [", "cannot be read as YAML"),
    ],
)
def test_mistakes_are_one_line(net, recipe, tmp_path, text, message):
    done = dpq(
        "compress", net, "-a", "mlp", "-o", tmp_path / "out", "--recipe", recipe(text + "\n")
    )
    assert done.code == 1
    assert done.err.startswith("dpq: error: recipe ")
    assert "recipe.yaml" in done.err
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("", "has no version; write `version: 1`"),
        ("version: 2\n", "version 2 is not known; write `version: 1`"),
        ("version: true\n", "version True is not known"),
        ("- version\n- ", "write one option per line"),
    ],
)
def test_a_recipe_says_its_version(net, recipe, version, message):
    path = recipe("1\n" if "-" in version else "d: 4\n", version)
    done = dpq("plan", net, "-a", "mlp", "--recipe", path)
    assert done.code == 1
    assert message in done.err


def test_a_missing_or_huge_file_is_one_line(net, tmp_path):
    done = dpq("plan", net, "-a", "mlp", "--recipe", tmp_path / "none.yaml")
    assert (done.code, "none.yaml: No such file" in done.err) == (1, True)
    (tmp_path / "big.yaml").write_bytes(b"version: 1\n" + b"#" * (1 << 20))
    done = dpq("plan", net, "-a", "mlp", "--recipe", tmp_path / "big.yaml")
    assert (done.code, "this is no recipe" in done.err) == (1, True)


@pytest.mark.parametrize(
    "text",
    [
        "d: !!python/object/apply:os.system ['touch hostile']",
        "d: !!python/object/new:os.system ['touch hostile']",
        "d: !!python/name:os.system",
        "!!python/object/apply:os.system ['touch hostile']: 1",
        "override: &a [*a]",
        "[" * 5000,
        "? [d]\n: 4",
    ],
)
def test_a_hostile_recipe_is_one_line_and_runs_nothing(net, recipe, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    done = dpq("plan", net, "-a", "mlp", "--recipe", recipe(text + "\n"))
    assert done.code == 1
    assert len(done.err.strip().splitlines()) == 1
    assert "bug in dpq" not in done.err
    assert not (tmp_path / "hostile").exists()


def test_aliases_and_merges_are_plain_values(recipe):
    text = "spec: &s {stages: 2}\nset: []\n"
    assert parsed("compress", "net", "-o", "o", "--recipe", recipe(text))["set"] == ["stages=2"]
    merged = "spec:\n  pool: {<<: {tau: 0.1}, refine: 2}\n"
    found = parsed("compress", "net", "-o", "o", "--recipe", recipe(merged))["set"]
    assert sorted(found) == ["pool.refine=2", "pool.tau=0.1"]


@pytest.mark.parametrize("verb", ["plan", "compress", "calibrate", "eval", "sample", "export"])
def test_every_verb_with_options_takes_a_recipe(recipe, verb):
    words = ["source"] if verb in ("plan", "eval", "sample") else ["source", "-o", "out"]
    assert parsed(verb, *words, "--recipe", recipe("seed: 9\n"))["seed"] == 9
