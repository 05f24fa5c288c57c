"""Plugin discovery with really installed metadata (a dist-info on sys.path, no mocks)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from plugins import install_plugin

from dpq_core.errors import AdapterError
from dpq_core.plugin import registry
from dpq_core.plugin.adapter import Adapter
from dpq_core.plugin.registry import AdapterEntry

GOOD = """
from dpq_core.plugin.adapter import TensorAdapter

class Good(TensorAdapter):
    name = "good"
    summary = "does nothing well"
    def open(self, source): raise NotImplementedError
    def select(self, name, shape): return None
"""


def _install_good(monkeypatch: pytest.MonkeyPatch, site: Path, **changes: object) -> None:
    settings = {
        "distribution": "dpq-good",
        "points": {"good": "good_plugin:Good"},
        "modules": {"good_plugin": GOOD},
    }
    install_plugin(monkeypatch, site, **{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _forget_plugins() -> object:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.endswith("_plugin"):
            del sys.modules[name]


def test_in_tree_adapters_are_listed_like_any_other():
    assert AdapterEntry("llama", "dpq", "dpq_llama.adapter:LlamaAdapter") in registry.available()


def test_a_third_partys_adapter_is_listed_and_loaded(monkeypatch, tmp_path):
    _install_good(monkeypatch, tmp_path)
    assert AdapterEntry("good", "dpq-good", "good_plugin:Good") in registry.available()
    adapter = registry.load("good")
    assert isinstance(adapter, Adapter)
    assert adapter.capabilities() == ()


def test_an_adapter_for_an_unknown_contract_is_refused_by_name(monkeypatch, tmp_path):
    text = GOOD.replace('name = "good"', 'name = "good"; contract = 2')
    _install_good(monkeypatch, tmp_path, modules={"good_plugin": text})
    with pytest.raises(AdapterError, match=r"'good' of dpq-good .* version 2 .* knows 1"):
        registry.load("good")


def test_an_alias_is_the_adapter_of_another_name():
    assert type(registry.load("llm")) is type(registry.load("llama"))
    assert registry.canonical_name("llm") == "llama"
    assert registry.canonical_name("nonsense") == "nonsense"
    assert "llm" not in {entry.name for entry in registry.available()}


def test_listing_imports_nothing(monkeypatch, tmp_path):
    _install_good(monkeypatch, tmp_path)
    registry.available()
    assert "good_plugin" not in sys.modules
    registry.load("good")
    assert "good_plugin" in sys.modules


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
        ("Good = 3", "the target is not a dpq_core.plugin.adapter.Adapter"),
        ("x = 1", "has no attribute 'Good'"),
        (GOOD.replace('"good"', '"other"'), "its class says name = 'other'"),
        (GOOD.replace('"good"', '"bad"').replace("def open", "def opened"), "abstract"),
    ],
    ids=["raises", "exits", "not-an-adapter", "no-attribute", "other-name", "abstract"],
)
def test_a_broken_plugin_spoils_only_itself(monkeypatch, tmp_path, text, reason):
    _install_good(monkeypatch, tmp_path / "good")
    install_plugin(
        monkeypatch,
        tmp_path / "bad",
        distribution="dpq-bad",
        points={"bad": "bad_plugin:Good"},
        modules={"bad_plugin": text},
    )
    with pytest.raises(AdapterError) as caught:
        registry.load("bad")
    assert "adapter 'bad' of dpq-bad (bad_plugin:Good) is broken: " in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert registry.load("good").name == "good"


def test_a_target_that_does_not_exist_is_broken_not_a_missing_dependency(monkeypatch, tmp_path):
    install_plugin(
        monkeypatch, tmp_path, distribution="dpq-gone", points={"gone": "gone_plugin:Gone"}
    )
    with pytest.raises(AdapterError, match=r"is broken: .*No module named 'gone_plugin'"):
        registry.load("gone")


def test_unknown_name_says_the_nearest_and_the_list(monkeypatch, tmp_path):
    _install_good(monkeypatch, tmp_path)
    with pytest.raises(AdapterError) as caught:
        registry.load("lama")
    assert "no adapter 'lama'; did you mean llama? installed: " in str(caught.value)
    assert "good" in str(caught.value)


def test_a_far_name_gets_the_list_without_a_guess():
    with pytest.raises(AdapterError, match=r"no adapter 'zzz'; installed: .*llama"):
        registry.load("zzz")


def test_two_claimants_are_both_named(monkeypatch, tmp_path):
    _install_good(monkeypatch, tmp_path / "a")
    _install_good(
        monkeypatch, tmp_path / "b", distribution="rival", points={"good": "rival_plugin:R"}
    )
    with pytest.raises(AdapterError) as caught:
        registry.load("good")
    assert str(caught.value) == (
        "adapter 'good' is claimed by dpq-good (good_plugin:Good) and rival (rival_plugin:R); "
        "uninstall all but one of them"
    )
    assert sum(entry.name == "good" for entry in registry.available()) == 2


def test_missing_dependency_gives_the_extras_pip_command(monkeypatch, tmp_path):
    _install_good(
        monkeypatch,
        tmp_path,
        modules={"good_plugin": "import surely_not_installed.part"},
        extras=("good",),
    )
    with pytest.raises(AdapterError) as caught:
        registry.load("good")
    assert str(caught.value) == (
        "adapter 'good' needs 'surely_not_installed', which is not installed: "
        "pip install 'dpq-good[good]'"
    )


def test_missing_dependency_without_an_extra_of_that_name(monkeypatch, tmp_path):
    _install_good(monkeypatch, tmp_path, modules={"good_plugin": "import surely_not_installed"})
    with pytest.raises(AdapterError, match="pip install --force-reinstall dpq-good"):
        registry.load("good")


def test_missing_dependency_at_work_gives_the_in_tree_pip_command():
    with (
        pytest.raises(AdapterError) as caught,
        registry.explain_missing("llama"),
    ):
        import surely_not_installed  # noqa: F401
    assert str(caught.value) == (
        "adapter 'llama' needs 'surely_not_installed', which is not installed: "
        "pip install 'dpq[llama]'"
    )


def test_a_librarys_own_import_error_keeps_its_words():
    with (
        pytest.raises(AdapterError) as caught,
        registry.explain_missing("llama"),
    ):
        raise ImportError("Using device_map\nrequires Accelerate")
    assert str(caught.value) == (
        "adapter 'llama' cannot import a dependency (ImportError: Using device_map requires "
        "Accelerate): pip install 'dpq[llama]'"
    )


def test_an_import_error_of_dpq_itself_is_a_bug_and_stays_one():
    with pytest.raises(ImportError), registry.explain_missing("llama"):
        import dpq_core.no_such_module  # noqa: F401


def test_no_adapters_at_all():
    code = (
        "from dpq_core.plugin import registry\n"
        "registry.GROUP = 'no.such.group'\n"
        "try: registry.load('llama')\n"
        "except registry.AdapterError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no adapters are installed; run pip install 'dpq[all]'" in done.stdout
