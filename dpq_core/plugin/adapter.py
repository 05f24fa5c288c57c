"""The plugin contract: what a domain (LLMs, diffusion, splats, yours) tells dpq.

``open`` and ``select`` are enough for ``dpq compress`` and ``inspect``. Everything else is added
capability by capability; ``Adapter.capabilities`` says which ones an adapter has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dpq_core.errors import AdapterError

if TYPE_CHECKING:
    import torch

    from dpq_core.artifact import Artifact, Manifest
    from dpq_core.artifact.single_writer import Packed
    from dpq_core.data.task import CalibrationTask
    from dpq_core.run import Run
    from dpq_core.spec import Override, QuantSpec
    from dpq_core.tensor.checkpoint import Checkpoint
    from dpq_core.tensor.hidden_axes import HiddenAxis
    from dpq_core.tensor.partition import Layout


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number, with everything needed to compare it.

    Attributes:
        name: e.g. ``perplexity``.
        value: the number.
        higher_is_better: direction of improvement.
        protocol: what was measured on what, e.g. ``context 512, 98,304 tokens of heldout.txt``.
    """

    name: str
    value: float
    higher_is_better: bool
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metrics of one model.

    Attributes:
        metrics: in the order in which they are shown.
        details: whatever else belongs in ``--json``.
        notes: one line each, for the user: what was left out, and why.
        others: further sources that the adapter measured alike, by name: more columns of the table.
    """

    metrics: tuple[Metric, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    others: Mapping[str, Evaluation] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a model made: texts to read, files to open."""

    texts: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written, and what a person should know about it (losses, conventions)."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What ``dpq demo`` shows of an adapter: a built-in model, and options that keep it short.

    In the values of the options, ``SAMPLES`` stands for the folder of the model's samples, and
    ``ORIGINAL`` for that of the uncompressed model's.

    Attributes:
        source: the uncompressed model.
        evaluate: options for all models.
        sample: options for all models.
        evaluate_against: further options for compressed models.
        sample_against: further options for compressed models.
        presets: of ``dpq compress``, for adapters that have them instead of bits per weight.
        shown: metrics of the table; all of them if none is named.
    """

    SAMPLES: ClassVar[str] = "{samples}"
    ORIGINAL: ClassVar[str] = "{original}"

    source: str
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)
    evaluate_against: Mapping[str, Any] = field(default_factory=dict)
    sample_against: Mapping[str, Any] = field(default_factory=dict)
    presets: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()


class Adapter(ABC):
    """One domain. In-tree adapters have exactly the standing of a third party's.

    Class attributes:
        name: the entry-point name, as in ``--adapter NAME``.
        summary: one line for ``dpq adapters``.
        options: verb (``compress``, ``calibrate``, ``evaluate``, ``sample``, ``export``) -> frozen
            dataclass of that verb's options; every field has a default and
            ``metadata={"help": ...}``. The CLI turns them into flags.
        builtins: the models that ship with the adapter: ``x`` is the source ``builtin:x``.
        exports: the formats of ``export``, as in ``dpq export --to``; a format that is the suffix
            of the output needs not be named.
        single_file: its artifacts are one ``.dpq`` file, which ``pack`` fills, and not a folder of
            tensors; ``select``, ``overrides`` and ``generated_files`` are then not asked.
        demo: what ``dpq demo`` shows of it; None leaves it out.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[Mapping[str, type]] = {}
    builtins: ClassVar[tuple[str, ...]] = ()
    exports: ClassVar[tuple[str, ...]] = ()
    single_file: ClassVar[bool] = False
    demo: ClassVar[Demo | None] = None

    @abstractmethod
    def open(self, source: str) -> Checkpoint:
        """Open a path, hub id or ``builtin:NAME`` without reading its tensors.

        Raises:
            SourceError: it does not exist, or is not of this domain.
        """

    def open_with(self, source: str, options: Any) -> Checkpoint:
        """``open`` with the adapter's own options for ``compress``, or None for their defaults."""
        return self.open(source)

    @abstractmethod
    def select(self, name: str, shape: tuple[int, ...]) -> Layout | None:
        """How the tensor is viewed as a matrix when it is compressed; None keeps it as it is."""

    def weights_names(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        """Component -> stem of its weight files (``model`` -> ``model.safetensors``).

        A model of several parts calls the tensors of part C ``C/...``; each part has weight files
        of its own, in which the names lack the prefix.
        """
        return {"": "model"}

    def overrides(self, spec: QuantSpec) -> tuple[Override, ...]:
        """The adapter's own policy for sensitive tensors; the user's overrides come after it."""
        return ()

    def hidden_axes(self, checkpoint: Checkpoint) -> Iterable[HiddenAxis]:
        """Hidden units whose order is free, such as those of an MLP between its two layers.

        Columns that the spec permutes are reordered there, on both sides of the axis, and neither
        bytes nor time are spent on their order. What lies between must act on each unit alone.
        Pairs whose tensors are missing or do not fit are left out by the engine.
        """
        return ()

    def generated_files(self, checkpoint: Checkpoint, manifest: Manifest) -> Mapping[str, bytes]:
        """Files to write beside the weights (config, model card): relative path -> content."""
        return {}

    def pack(self, source: str, options: Any, run: Run) -> Packed:
        """The whole source, coded for one file; for adapters with ``single_file``."""
        raise self._lacks("pack a source into one file")

    def pack_within(self, source: str, options: Any, budget: int, run: Run) -> Packed:
        """As ``pack``, as well as a file of ``budget`` bytes allows, and never larger."""
        raise self._lacks("fit a file to a number of bytes")

    def load(self, source: str, run: Run) -> Any:
        """A runnable model from an artifact or from an uncompressed source."""
        raise self._lacks("load models")

    def calibration(self, source: str, baseline: str, options: Any, run: Run) -> CalibrationTask:
        """Student, teacher, batches and loss, for ``dpq calibrate``.

        Args:
            source: an artifact: the student (see ``dpq_core.calibrate.layers.prepare_student``).
            baseline: the uncompressed model that it was made of: the teacher.
            options: an instance of ``options["calibrate"]``, or None for its defaults.
            run: device and seed; progress is shown by the loop.
        """
        raise self._lacks("calibrate")

    def evaluate(self, source: str, options: Any, run: Run) -> Evaluation:
        """Measure an artifact or an uncompressed source on the domain's own task."""
        raise self._lacks("evaluate")

    def sample(self, source: str, options: Any, run: Run, out: Path | None) -> Sampling:
        """Let the model make something a person can look at; files go to ``out``."""
        raise self._lacks("sample")

    def export(self, source: str, to: str, options: Any, run: Run, out: Path) -> Export:
        """Write an artifact or an uncompressed source in a format of its ecosystem.

        ``to`` is one of ``exports``. ``out`` appears whole or not at all, and replaces what is
        there: the caller has made sure that this is wanted.
        """
        raise self._lacks("export")

    def probe(self, artifact: Artifact, run: Run) -> Mapping[str, torch.Tensor]:
        """Outputs of the loaded artifact on a fixed input, to be stored and compared later.

        The artifact may still be unfinished: load it by ``artifact.path``, do not open it anew.
        """
        raise self._lacks("probe")

    @classmethod
    def capabilities(cls) -> tuple[str, ...]:
        """The optional verbs that this adapter implements."""
        methods = {verb: verb for verb in ("load", "evaluate", "sample", "export", "probe")}
        methods["calibrate"] = "calibration"
        return tuple(
            verb
            for verb, method in methods.items()
            if getattr(cls, method) is not getattr(Adapter, method)
        )

    def _lacks(self, what: str) -> AdapterError:
        return AdapterError(f"adapter {self.name!r} cannot {what} (see `dpq adapters`)")
