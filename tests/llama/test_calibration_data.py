"""Windows of tokens: from files, data sets, and from a model itself."""

from __future__ import annotations

import gzip
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from dpq_core.errors import SourceError, SpecError
from dpq_llama.calibration.windows import SHIPPED, read_windows, write_windows
from dpq_llama.options import CalibrateOptions
from dpq_llama.source.texts import read_text

END = 1


class Characters:
    """A tokenizer whose tokens are characters."""

    eos_token_id = END

    def __call__(self, text, **_):
        return {"input_ids": [ord(character) for character in text]}


def windows(*texts, context=8, seed=0, **changes):
    sizes = {"samples": 6, "batch_size": 2, "validation_samples": 3}
    options = CalibrateOptions(texts=tuple(map(str, texts)), **{**sizes, **changes})
    return read_windows(options, Characters(), context, seed)


def text_of(ids):
    return "".join(chr(i) if i != END else "$" for i in ids.flatten().tolist())


@pytest.fixture
def book(tmp_path):
    """Every character occurs once: 2000 of them."""
    path = tmp_path / "book.txt"
    path.write_text("".join(map(chr, range(0x4E00, 0x4E00 + 2000))), "utf-8")
    return path


def test_windows_are_pieces_of_the_text_and_never_overlap(book):
    found = windows(book)
    assert found.ids.shape == (4 + 6, 8)
    assert (found.validation, found.train, found.description) == (4, 6, "text files")
    tokens = [i for i in found.ids.flatten().tolist() if i != END]
    assert len(set(tokens)) == len(tokens)
    steps = found.ids.flatten().diff()
    assert (steps == 1).float().mean() > 0.9


def test_pieces_are_drawn_by_the_seed_from_the_whole_text(book):
    starts = {int(windows(book, seed=seed).ids[0, 0]) - 0x4E00 for seed in range(20)}
    assert len(starts) > 5
    assert max(starts) > 1000
    assert all(start % (16 * 8) == 0 for start in starts)
    assert torch.equal(windows(book, seed=3).ids, windows(book, seed=3).ids)
    assert windows(book, seed=3).fingerprint == windows(book, seed=3).fingerprint
    assert windows(book, seed=3).fingerprint != windows(book, seed=4).fingerprint


def test_documents_end_with_the_token_for_it(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 30)
    text = text_of(windows(tmp_path, context=4, samples=12, validation_samples=2).ids)
    assert {len(part) for part in text.split("$")[:-1]} == {30}


def test_the_fingerprint_knows_roles(book):
    one = windows(book, samples=6, validation_samples=4)
    other = windows(book, samples=8, validation_samples=2)
    assert torch.equal(one.ids, other.ids)
    assert one.fingerprint != other.fingerprint


def test_folders_patterns_and_packed_files(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("a" * 60)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"b" * 60))
    (tmp_path / "c.md").write_text("c" * 60)

    def letters(*patterns):
        return set(text_of(windows(*patterns, context=4, samples=40).ids)) - {"$"}

    assert letters(tmp_path) == {"a", "b"}
    assert letters(tmp_path / "c.md") == {"c"}
    assert letters(tmp_path / "*.md", tmp_path / "deep") == {"a", "c"}
    assert letters(tmp_path / "**" / "*.txt") == {"a"}
    twice = windows(tmp_path / "c.md", tmp_path / "*.md", context=4, samples=40)
    assert len(twice.ids) == 61 // 4


PACKED = gzip.compress(b"x" * 1000, mtime=0)  # the ids of tests hold it


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file or folder"),
        ("empty.txt", b" \n", "the text is empty"),
        ("binary.txt", b"\xff\xfe\x00", "not UTF-8 text"),
        ("bad.gz", b"no gzip", r"cannot read the text \(damaged \.gz\)"),
        ("cut.gz", PACKED[:-12], r"cannot read the text \(damaged \.gz\)"),
        ("folder", None, "no .txt or .gz file"),
    ],
)
def test_texts_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    elif name == "folder":
        (tmp_path / name).mkdir()
    with pytest.raises(SourceError, match=message) as caught:
        windows(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        read_text(tmp_path / "x.gz")


def test_short_texts_give_fewer_windows_or_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" * (8 * 6 - 1))  # with the end of the document: six windows
    assert windows(path).train == 2
    path.write_text("x" * (8 * 6 - 2))
    with pytest.raises(
        SpecError, match=r"47 tokens fill 5 windows of 8 .*shorter context"
    ) as caught:
        windows(path)
    assert "4 are needed for validation and 2 for a batch" in str(caught.value)


# -- data sets -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set of rows with two columns of strings."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "data"
    path.mkdir()
    rows = [{"number": n, "title": "t" * 9, "words": "w" * 9} for n in range(40)]
    (path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (path / "test.jsonl").write_text(
        json.dumps({"number": 1, "title": "T" * 99, "words": "W" * 99})
    )
    return path


def rows_of(dataset, **changes):
    sizes = {"samples": 6, "batch_size": 2, "validation_samples": 3}
    options = CalibrateOptions(dataset=dataset, **{**sizes, **changes})
    return read_windows(options, Characters(), 8, 0)


@pytest.mark.slow
def test_a_data_set_gives_the_texts_of_a_column(folder):
    found = rows_of(f"{folder}:::words")
    assert set(text_of(found.ids)) == {"w", "$"}
    assert found.description == f"data set {folder}:::words"
    assert set(text_of(rows_of(f"{folder}::test:title").ids)) == {"T"}


@pytest.mark.slow
def test_the_column_is_found_where_there_is_one(folder):
    for name, column in (("text", "text"), ("other", "words")):
        path = folder.parent / name
        path.mkdir()
        row = {"n": 1, column: "x" * 99, **({"words": "y"} if column == "text" else {})}
        (path / "train.jsonl").write_text(json.dumps(row))
        assert set(text_of(rows_of(str(path)).ids)) == {"x"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ("", SourceError, "say which column is the text: title, words"),
        (":::number", SourceError, "no text in column 'number'; its columns: number, title"),
        ("::valid", SourceError, "cannot be read"),
        ("-not-there", SourceError, "cannot be read"),
        (":a:b:c:d", SpecError, r"write ID\[:config"),
    ],
)
def test_data_sets_that_do_not_fit(folder, parts, error, message):
    with pytest.raises(error, match=message) as caught:
        rows_of(f"{folder}{parts}")
    assert "\n" not in str(caught.value)


def test_without_the_library_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SpecError, match="pip install datasets"):
        rows_of("owner/name")


# -- the model's own text ------------------------------------------------------------------------


class Chain:
    """A model that follows token t by t + 1, or by t + 2 with the odds given.

    It keeps what it has read in its cache, as a transformer does.
    """

    device = torch.device("cpu")

    def __init__(self, vocabulary=50, odds=0.0, **tokens):
        names = {"bos_token_id": None, "eos_token_id": None, **tokens}
        self.config = SimpleNamespace(vocab_size=vocabulary, **names)
        self.config.get_text_config = lambda: self.config
        self.odds, self.read = odds, []

    def __call__(self, *, input_ids, past_key_values, use_cache):
        assert use_cache
        assert input_ids.shape[1] == 1
        seen = (
            torch.cat([past_key_values, input_ids], 1) if past_key_values is not None else input_ids
        )
        self.read.append(seen)
        chances = torch.zeros(*input_ids.shape, self.config.vocab_size)
        following = torch.stack([input_ids + 1, input_ids + 2], -1) % self.config.vocab_size
        chances.scatter_(
            -1, following, torch.tensor([1 - self.odds, self.odds]).expand_as(following.float())
        )
        return SimpleNamespace(logits=chances.log(), past_key_values=seen)


def test_a_model_writes_what_it_finds_likely_after_all_it_has_written():
    model = Chain()
    ids = write_windows(model, 3, 20, seed=0)
    assert ids.shape == (3, 20)
    assert torch.equal(ids.diff() % 50, torch.ones(3, 19, dtype=torch.int64))
    assert torch.equal(model.read[-1], ids[:, :-1])
    assert len(set(ids[:, 0].tolist())) > 1


@pytest.mark.slow
def test_it_draws_at_temperature_1():
    ids = write_windows(Chain(odds=0.25), 40, 200, seed=0)
    share = (ids.diff() % 50 == 2).float().mean()
    assert share == pytest.approx(0.25, abs=0.03)


def test_documents_begin_with_the_token_for_it_and_follow_each_other():
    ids = write_windows(Chain(bos_token_id=5, eos_token_id=[9, 30]), 2, 12, seed=0)
    assert ids[0].tolist() == [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]
    same = write_windows(Chain(bos_token_id=5, eos_token_id=5), 1, 4, seed=0)
    assert same.tolist() == [[5, 6, 7, 8]]


def test_texts_depend_on_the_seed_only_and_progress_is_shown():
    seen = []
    model = Chain(odds=0.5)
    one = write_windows(model, 40, 9, 1, lambda *about: seen.append(about))
    torch.manual_seed(123)
    assert torch.equal(one, write_windows(model, 40, 9, 1))
    assert not torch.equal(one, write_windows(model, 40, 9, 2))
    assert torch.equal(one[:32], write_windows(model, 32, 9, 1))
    assert len(set(map(tuple, one.tolist()))) > 30
    assert seen[-1] == ("writing text", 360, 360)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "mse"}, "loss='mse': must be one of auto, kl, cross-entropy"),
        ({"texts": ("a",), "generate": True}, "choose one"),
        ({"texts": ("a",), "dataset": "b"}, "choose one"),
        ({"context": 1}, "context=1: must be at least 2"),
        ({"context": -5}, "context=-5: must be at least 2"),
        ({"batch_size": 0}, "batch_size=0: must be 1 or more"),
        ({"validation_samples": 0}, "validation_samples=0: must be 1 or more"),
        ({"samples": 4}, "samples=4: fewer windows than one batch takes; lower batch_size"),
    ],
    ids=str,
)
def test_options_out_of_range(wrong, message):
    with pytest.raises(SpecError, match=message):
        CalibrateOptions(**wrong)


@pytest.mark.parametrize(("asked", "batch", "windows"), [(16, 8, 16), (17, 8, 24), (3, 8, 3)])
def test_validation_is_in_whole_batches(asked, batch, windows):
    found = CalibrateOptions(validation_samples=asked, batch_size=batch).validation_windows
    assert found == windows


# -- the text that ships --------------------------------------------------------------------------


def test_a_text_ships_and_is_read_where_there_is_no_other():
    options = CalibrateOptions(samples=64, batch_size=8, validation_samples=8)
    found = read_windows(options, Characters(), 512, seed=0)
    assert found.description == "the calibration text that ships with dpq"
    assert found.ids.shape == (8 + 64, 512)
    assert SHIPPED.stat().st_size <= 400_000
    card = SHIPPED.with_name("README.md").read_text()
    text = read_text(SHIPPED)
    assert f"{len(text.encode()):,} bytes" in card
    assert "CC0" in card
    assert "#include" in text
    assert re.search("[\u4e00-\u9fff]{5}", text)
    assert "Assistant:" in text
