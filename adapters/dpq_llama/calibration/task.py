"""The calibration of a language model: student, teacher, windows of text and loss."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dpq_core.artifact import Artifact
from dpq_core.calibrate.layers import prepare_student
from dpq_core.data.task import Batch, CalibrationTask
from dpq_core.device import resolve
from dpq_core.errors import GIVE_BASELINE, AdapterError, Hint, SourceError, SpecError
from dpq_core.run import Run
from dpq_llama.calibration import losses
from dpq_llama.calibration.windows import Windows, windows_of
from dpq_llama.families.layers import blocks_of
from dpq_llama.options import CalibrateOptions
from dpq_llama.source.architecture import has_head, logits_function, longest_context
from dpq_llama.source.checkpoint import LlamaCheckpoint, locate, open_checkpoint, read_config
from dpq_llama.source.loading import load_folder
from dpq_llama.source.streaming import StreamedModel, load_streamed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


_USUAL_CONTEXT = 512

_MEMORY = 2 << 30
"""Bytes of the teacher's hidden states that are kept, so that it reads every window once."""

_NAMES = {
    "kl": "KL to the uncompressed model",
    "cross-entropy": "cross-entropy",
    "both": "cross-entropy and KL to the uncompressed model",
    "hidden": "distance of hidden states",
}


class LlamaTask(CalibrationTask):
    """Calibration of a compressed language model against the uncompressed one, on text."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        windows: Windows,
        options: CalibrateOptions,
        *,
        original: LlamaCheckpoint,
        streamed: StreamedModel | None = None,
        seed: int = 0,
    ) -> None:
        """Make a task of models and windows that are loaded.

        Args:
            student: ready to be trained (``prepare_student``), or an uncompressed model.
            teacher: the uncompressed model; None where the student is uncompressed itself, as it is
                when the loss of a batch for validation is first asked for.
            windows: on the student's device.
            options: of the user, ``loss`` not ``auto``.
            original: the uncompressed checkpoint, whose tensors' names the artifact has too.
            streamed: the student, where its blocks are read as they run.
            seed: of the order of windows.
        """
        self.student: PreTrainedModel = student
        self.streamed = None if streamed is None else streamed.blocks
        self._teacher, self._windows, self._options = teacher, windows, options
        self._seed = seed
        self._stored = original.stored_names() if streamed is None else streamed.tensors
        self._tied = dict(original.model.all_tied_weights_keys)
        self._vocabulary: int = student.config.get_text_config().vocab_size
        self._hidden_of_window: dict[int, Tensor] = {}
        self._first_hidden_of_window: dict[int, Tensor] = {}
        self._head: nn.Module | None = None
        self.epoch = max(1, windows.train // options.batch_size)
        context = windows.ids.shape[1]
        self.data = f"{windows.train} windows of {context} tokens of {windows.description}"
        self.name = f"{_NAMES[options.loss]}, {self.data}"
        about = f"{windows.fingerprint} {options!r} {seed}"
        self.fingerprint = hashlib.sha256(about.encode()).hexdigest()

    def train_batch(self, step: int) -> Batch:
        """The windows of a training step; every epoch has them in another order."""
        count, size = self._windows.train, self._options.batch_size
        places = range(step * size, (step + 1) * size)
        orders = {
            epoch: np.random.default_rng([self._seed, epoch]).permutation(count)
            for epoch in {place // count for place in places}
        }
        numbers = [int(orders[place // count][place % count]) for place in places]
        return self._batch([self._windows.validation + number for number in numbers])

    def validation(self) -> Sequence[Batch]:
        """All windows for validation."""
        count, size = self._windows.validation, self._options.batch_size
        return [
            self._batch(range(first, min(first + size, count))) for first in range(0, count, size)
        ]

    def _batch(self, windows: Sequence[int]) -> Batch:
        """``ids`` int64 ``[samples, context]`` and ``window``, their numbers, ``[samples]``."""
        numbers = torch.tensor(windows)
        return {"ids": self._windows.ids[numbers.to(self._windows.ids.device)], "window": numbers}

    def loss(self, batch: Batch) -> Tensor:
        """The loss of the student on a batch, by the user's choice of ``--loss``."""
        ids, kind = batch["ids"], self._options.loss
        hidden = _hidden(self.student, ids)
        if kind == "hidden":
            return losses.distance(hidden, self._teacher_hidden(batch))
        student = losses.predictions(logits_function(self.student), hidden)
        total = torch.zeros((), device=hidden.device)
        if kind in ("cross-entropy", "both"):
            total = total + losses.cross_entropy(student, ids[:, 1:].flatten(), self._vocabulary)
        if kind in ("kl", "both"):
            teacher = losses.predictions(self._teacher_head(), self._teacher_hidden(batch))
            total = total + losses.kl(student, teacher, self._vocabulary)
        return total

    def sampled_loss(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """Cross-entropy of tokens that the student itself predicts; None without a head."""
        if _head(self.student) is None:
            return None
        embeddings = self.student.get_input_embeddings()(batch["ids"]).detach().requires_grad_()
        output = self.student.base_model(inputs_embeds=embeddings, use_cache=False)
        student = losses.predictions(logits_function(self.student), output.last_hidden_state)
        return losses.sampled(student, self._vocabulary, generator)

    @torch.no_grad()
    def reference_loss(self) -> float:
        """Cross-entropy of the uncompressed model; its distance to itself is 0."""
        if self._options.loss not in ("cross-entropy", "both"):
            return 0.0
        values = []
        for batch in self.validation():
            teacher = losses.predictions(self._teacher_head(), self._teacher_hidden(batch))
            targets = batch["ids"][:, 1:].flatten()
            values.append(float(losses.cross_entropy(teacher, targets, self._vocabulary)))
        return sum(values) / len(values)

    def teacher(self) -> nn.Module | None:
        """The uncompressed model; None where the student is uncompressed."""
        return self._teacher

    def blocks(self) -> Sequence[str]:
        """Paths of the decoder layers, in their order."""
        return blocks_of(self.student)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The output of the whole model, its head included."""
        return model(input_ids=batch["ids"], use_cache=False)

    def tensor_name(self, path: str) -> str:
        """The stored name of the weight of the module at ``path``; a tied head is the embedding."""
        name = f"{path}.weight"
        prefix = f"{self.student.base_model_prefix}."
        for parameter in (name, f"{prefix}{name}", name.removeprefix(prefix)):
            parameter = self._tied.get(parameter, parameter)
            if parameter in self._stored:
                return self._stored[parameter]
        return name

    def _teacher_head(self) -> Callable[[Tensor], Tensor]:
        return logits_function(self._teacher or self.student, self._head)

    def _teacher_hidden(self, batch: Batch) -> Tensor:
        """Last hidden states ``[samples, context, hidden]`` of the uncompressed model.

        Without a teacher, those that the student had when it first saw a window for validation.
        """
        if self._teacher is not None:
            return self._window_hidden(self._teacher, batch)
        numbers = batch["window"].tolist()
        if max(numbers) >= self._windows.validation:
            raise AdapterError(
                "the student is uncompressed and has no teacher; calibrate an artifact"
            )
        if self._head is None:
            self._head = copy.deepcopy(_head(self.student))
        if not self._first_hidden_of_window.keys() >= set(numbers):
            hidden = self._window_hidden(self.student, batch)
            self._first_hidden_of_window |= dict(zip(numbers, hidden, strict=True))
        return torch.stack([self._first_hidden_of_window[number] for number in numbers])

    def _window_hidden(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
        """Last hidden states of each window alone, in the model's own precision.

        The values must not depend on the rest of a batch, which is another one after a resume or
        with more processes.
        """
        rows = []
        for number, ids in zip(batch["window"].tolist(), batch["ids"], strict=True):
            hidden = self._hidden_of_window.get(number)
            if hidden is None:
                with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
                    hidden = _hidden(model, ids[None])[0].cpu()
                nbytes = hidden.numel() * hidden.element_size()
                if (len(self._hidden_of_window) + 1) * nbytes <= _MEMORY:
                    self._hidden_of_window[number] = hidden
            rows.append(hidden)
        return torch.stack(rows).to(batch["ids"].device)


def _hidden(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Ids int64 ``[samples, context]`` -> last hidden states ``[samples, context, hidden]``."""
    hidden: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


def _head(model: PreTrainedModel) -> nn.Module:
    """The language-model head, from hidden states to logits."""
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head


def calibration(source: str, baseline: str, options: CalibrateOptions, run: Run) -> LlamaTask:
    """The task of an artifact, its uncompressed model and text.

    An uncompressed source becomes a student without a teacher, for compressing with data; its
    decoder blocks are read from its files as they run.

    Raises:
        ArtifactError: the artifact is damaged.
        SourceError: the original is another model, or text cannot be read.
        SpecError: there is too little text, or an option does not fit the model.
    """
    folder, original = locate(source), open_checkpoint(baseline)
    if original.is_fp8:
        raise SpecError(
            "weights of 8-bit floats in blocks are compressed without data only",
            Hint.of("use {}, or compress the bfloat16 original", data=False),
        )
    config = read_config(folder)
    head = has_head(config)
    options = _fill_in_defaults(options, original.model.config, head=head)
    device = resolve(run.device)
    quick = "bfloat16" if device.type == "cuda" else "float32"
    if not Artifact.is_artifact(folder):
        streamed = load_streamed(original, device, quick, head=head)
        student = streamed.model
        student.requires_grad_(False)
        with streamed.blocks.hold_all():  # while the model writes text, it runs once per token
            windows = windows_of(options, student, original.fingerprint, source, run)
        return LlamaTask(
            student, None, windows, options, original=original, streamed=streamed, seed=run.seed
        )
    teacher = load_folder(original.folder, device, quick, head=head)
    teacher.requires_grad_(False)
    Artifact.open(folder, adapter="llama")
    student = load_folder(folder, device, "float32", head=head)
    _check_same_model(student, teacher, baseline)
    prepare_student(student)
    windows = windows_of(options, teacher, original.fingerprint, source, run)
    return LlamaTask(student, teacher, windows, options, original=original, seed=run.seed)


def _fill_in_defaults(
    options: CalibrateOptions, config: PreTrainedConfig, *, head: bool
) -> CalibrateOptions:
    """The options with every default of this model filled in, checked against the model."""
    longest = longest_context(config)
    if options.context > longest:
        message = f"more than the {longest} positions of the model"
        raise SpecError(message, option="context", value=options.context)
    loss = options.loss
    if loss == "auto":
        loss = "kl" if head else "hidden"
    if not head and (loss != "hidden" or options.generate):
        raise SpecError(
            "this model has no language-model head: it writes no text, and is trained on its "
            "hidden states",
            Hint.of("leave out {}, and give no other loss than {}", generate=True, loss="hidden"),
        )
    context = options.context or min(_USUAL_CONTEXT, longest)
    return dataclasses.replace(options, loss=loss, context=context)


def _check_same_model(student: PreTrainedModel, teacher: PreTrainedModel, baseline: str) -> None:
    for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
        ours = getattr(student.config.get_text_config(), name)
        theirs = getattr(teacher.config.get_text_config(), name)
        if ours != theirs:
            raise SourceError(
                f"{baseline}: {name} is {theirs}, of the artifact {ours}; it is not the model that "
                "was compressed",
                GIVE_BASELINE,
            )
