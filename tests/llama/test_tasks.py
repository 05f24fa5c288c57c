"""lm-eval tasks: a local YAML with local data, and names that do not exist."""

from __future__ import annotations

import json
import shutil

import pytest

from dpq_core.errors import SpecError
from dpq_core.run import Run
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.options import EvaluateOptions
from dpq_llama.source.checkpoint import BUILTIN

# lm-eval and datasets raise warnings of their own; only their results are tested here.
pytestmark = pytest.mark.filterwarnings("ignore")

RUN = Run(device="cpu")


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A two-question multiple-choice task in a folder of its own."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": "import", "choices": ["os", "while"], "answer": 0},
        {"question": "for x", "choices": ["return", "in"], "answer": 1},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "tasks"
    folder.mkdir()
    path = folder / "tiny.yaml"
    path.write_text(
        f"""\
task: dpq_tiny
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
    )
    return path


@pytest.mark.slow
@pytest.mark.parametrize("how", ["file", "folder"])
def test_a_local_task_offline(how, task):
    words = str(task if how == "file" else task.parent)
    result = LlamaAdapter().evaluate("builtin:tiny-llama", EvaluateOptions(tasks=(words,)), RUN)
    (metric,) = result.metrics
    assert metric.name == "dpq_tiny/acc"
    assert metric.value in (0.0, 0.5, 1.0)
    assert metric.higher_is_better
    assert metric.protocol.startswith("lm-eval ")
    assert "0-shot" in metric.protocol
    assert result.details["lm_eval"]["results"]["dpq_tiny"]["acc,none"] == metric.value


@pytest.mark.parametrize(
    ("word", "message"),
    [("none.yaml", "no such file"), ("{empty}", "the folder defines no task")],
)
def test_tasks_that_are_not_there(word, message, make_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    word = word.replace("{empty}", str(tmp_path / "empty"))
    folder = shutil.copytree(make_folder(), tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN / "tiny-llama" / name, folder)
    with pytest.raises(SpecError, match=message):
        LlamaAdapter().evaluate(str(folder), EvaluateOptions(tasks=(word,)), RUN)


@pytest.mark.slow
def test_an_unknown_task_name_gets_the_nearest():
    options = EvaluateOptions(tasks=("hellaswagg",))
    with pytest.raises(SpecError, match="did you mean hellaswag"):
        LlamaAdapter().evaluate("builtin:tiny-llama", options, RUN)
