"""Adapter options: dataclass -> flags -> dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpq_core.errors import AdapterError, SpecError
from dpq_core.plugin.options import describe, parse


def opt(default: Any, text: str = "a number") -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Options:
    context: int = opt(512, "tokens per window")
    temperature: float = opt(1.0)
    prompt: str = opt("")
    raw: bool = opt(False)
    tasks: tuple[str, ...] = opt(())
    limit: int | None = opt(None)
    text: Path | None = field(default=None, metadata={"help": "a file"})
    sizes: tuple[int, ...] = opt((1, 2))

    def __post_init__(self) -> None:
        if self.context < 1:
            raise SpecError("must be at least 1", option="context", value=self.context)


def test_nothing_given_means_the_defaults():
    assert parse(Options, []) == Options()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--context", "128"], Options(context=128)),
        (["--context=128"], Options(context=128)),
        (["--temperature", "-0.5"], Options(temperature=-0.5)),
        (["--prompt", "--not-a-flag"], Options(prompt="--not-a-flag")),
        (["--prompt=a=b"], Options(prompt="a=b")),
        (["--prompt="], Options(prompt="")),
        (["--raw"], Options(raw=True)),
        (["--no-raw"], Options(raw=False)),
        (["--tasks", "a", "--tasks=b"], Options(tasks=("a", "b"))),
        (["--tasks", "a", "b", "--tasks", "c", "--raw"], Options(tasks=("a", "b", "c"), raw=True)),
        (["--sizes", "7"], Options(sizes=(7,))),
        (["--limit", "3"], Options(limit=3)),
        (["--text", "a/b.txt"], Options(text=Path("a/b.txt"))),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags(words, expected):
    assert parse(Options, words) == expected


@pytest.mark.slow
@given(st.integers(1, 10**6), st.floats(allow_nan=False), st.booleans(), st.lists(st.text()))
def test_what_is_spelled_is_what_is_read(context, temperature, raw, tasks):
    words = [f"--context={context}", "--temperature", repr(temperature)]
    words += ["--raw" if raw else "--no-raw"]
    for task in tasks:
        words += ["--tasks", task]
    expected = Options(context=context, temperature=temperature, raw=raw, tasks=tuple(tasks))
    assert parse(Options, words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--contxt", "1"], "unknown option --contxt; did you mean --context or --text? the adap"),
        (["--zzz"], "unknown option --zzz; the adapter's options: --context, --temperature"),
        (["word"], "unexpected argument 'word'"),
        (["--context"], "option --context needs a value: --context INT"),
        (["--context", "many"], "option --context: 'many' is not a whole number"),
        (["--temperature", "hot"], "option --temperature: 'hot' is not a number"),
        (["--raw=yes"], "option --raw takes no value; write --raw/--no-raw"),
        (["--context=1", "--context=2"], "option --context is given twice"),
        (["--raw", "--no-raw"], "option --no-raw is given twice"),
        (["--context=0"], "context=0: must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(SpecError) as caught:
        parse(Options, words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_without_fields_takes_nothing():
    @dataclass(frozen=True)
    class Empty:
        pass

    assert parse(Empty, []) == Empty()
    with pytest.raises(SpecError, match="this adapter has no options here"):
        parse(Empty, ["--context", "1"])


def test_description():
    found = {option.field: option for option in describe(Options)}
    assert found["context"].usage == "--context INT"
    assert found["context"].help == "tokens per window"
    assert found["raw"].usage == "--raw/--no-raw"
    assert found["tasks"].usage == "--tasks STR (repeatable)"
    assert found["limit"].default is None
    assert [option.flag for option in describe(Options)][-1] == "--sizes"


def test_underscores_become_dashes():
    @dataclass(frozen=True)
    class Named:
        max_new_tokens: int = opt(1)

    assert parse(Named, ["--max-new-tokens", "5"]) == Named(max_new_tokens=5)


def _class(annotation: Any, **settings: Any) -> type:
    members = {"__annotations__": {"x": annotation}, "x": field(**settings)}
    return dataclass(frozen=True)(type("Mistaken", (), members))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (dict, "options class dict must be a frozen dataclass"),
        (dataclass(type("Thawed", (), {})), "options class Thawed must be a frozen dataclass"),
        (_class(int, metadata={"help": "h"}), "field 'x' needs a default"),
        (_class(int, default=1), "field 'x' needs metadata"),
        (_class(dict, default=None, metadata={"help": "h"}), "field 'x' has type"),
        (_class(int | str, default=1, metadata={"help": "h"}), "field 'x' has type"),
        (_class(tuple[int, str], default=(), metadata={"help": "h"}), "field 'x' has type"),
        (_class(tuple[bool, ...], default=(), metadata={"help": "h"}), "field 'x' has type"),
    ],
    ids=["dict", "thawed", "no-default", "no-help", "dict-field", "union", "pair", "bools"],
)
def test_an_authors_mistake_is_an_adapter_error(cls, message):
    with pytest.raises(AdapterError) as caught:
        describe(cls)
    assert message in str(caught.value)
