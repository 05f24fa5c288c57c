"""Tasks of EleutherAI's lm-evaluation-harness, through its Python API."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpq_core.errors import SourceError, SpecError
from dpq_core.nearest import nearest
from dpq_core.plugin.results import Metric

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BOOTSTRAP = 1000
"""Resamplings behind the standard error of metrics that have no closed form."""


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    limit: int,
    batch_size: int,
    seed: int,
) -> tuple[list[Metric], dict[str, Any]]:
    """Metrics of every task, and the results of the harness itself for ``--json``.

    Args:
        model: loaded on its device.
        tokenizer: of the model.
        tasks: names (comma-separated), paths of task YAMLs, or folders of them.
        limit: documents per task; 0 for all.
        batch_size: requests per forward pass.
        seed: of few-shot choices and the harness's generators.

    Raises:
        SpecError: a task is not known.
        SourceError: a task's data cannot be had.
    """
    import lm_eval
    from datasets.exceptions import DatasetsError  # type: ignore[import-untyped]
    from lm_eval.models.huggingface import HFLM

    names = [name for task in tasks for name in task.split(",") if name]
    manager, task_names = _resolve(names)
    try:
        results = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=task_names,
            task_manager=manager,
            limit=limit or None,
            bootstrap_iters=_BOOTSTRAP,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except (DatasetsError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"tasks {', '.join(names)}: cannot load the data ({reason})") from None
    documents = f", first {limit} documents" if limit else ""
    protocol = f"lm-eval {lm_eval.__version__}{documents}"
    harness_results = {key: results[key] for key in ("results", "versions", "n-shot", "n-samples")}
    return _metrics(results, protocol), harness_results


def _resolve(names: list[str]) -> tuple[Any, list[str]]:
    """The task manager of the harness, and the tasks to ask it for."""
    from lm_eval.tasks import TaskManager

    task_names: list[str] = []
    registered: list[str] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            local = TaskManager(include_path=str(path), include_defaults=False)
            if not local.all_tasks:
                raise SpecError("the folder defines no task", option="tasks", value=name)
            task_names += [str(local.task_index[task].yaml_path) for task in local.all_subtasks]
        elif path.suffix in (".yaml", ".yml"):
            if not path.is_file():
                raise SpecError("no such file", option="tasks", value=name)
            task_names.append(str(path.resolve()))
        else:
            registered.append(name)
    manager = TaskManager(include_defaults=bool(registered))
    for name in registered:
        if not manager.match_tasks([name]):
            message = (
                f"no such task; {nearest(name, manager.all_tasks, most=3)}see `lm-eval ls tasks`"
            )
            raise SpecError(message, option="tasks", value=name)
        task_names += manager.match_tasks([name])
    return manager, task_names


def _metrics(results: dict[str, Any], protocol: str) -> list[Metric]:
    metrics = []
    for task, values in results["results"].items():
        directions = results.get("higher_is_better", {}).get(task, {})
        shots = results.get("n-shot", {}).get(task, 0)
        for key, value in values.items():
            name, _, filter_name = key.partition(",")
            if not isinstance(value, int | float) or not filter_name or name.endswith("_stderr"):
                continue
            error = values.get(f"{name}_stderr,{filter_name}")
            spread = f", standard error {error:.4f}" if isinstance(error, float) else ""
            metrics.append(
                Metric(
                    name=f"{task}/{name}" + (f",{filter_name}" if filter_name != "none" else ""),
                    value=float(value),
                    higher_is_better=bool(directions.get(name, True)),
                    protocol=f"{protocol}, {shots}-shot{spread}",
                )
            )
    return metrics
