"""The plugin contract: the classes and protocols by which a domain's adapter joins dpq.

There are two kinds of adapters: a ``TensorAdapter`` describes a model of named tensors, a
``FileAdapter`` codes a whole source into one file. ``open`` and the methods of its kind are enough
for compressing and inspecting. Every further verb is one method, which an adapter has or has not:
see ``Loads``, ``Compiles``, ``Calibrates``, ``Evaluates``, ``Times``, ``Samples``, ``Exports``,
``Serves``, ``Probes``, ``PacksWithin``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from dpq_core.errors import AdapterError
from dpq_core.plugin.speed import Times

if TYPE_CHECKING:
    import torch

    from dpq_core.artifact import Artifact, Manifest
    from dpq_core.artifact.single_writer import Packed
    from dpq_core.data.task import CalibrationTask
    from dpq_core.plugin.results import Demo, Evaluation, Export, Sampling
    from dpq_core.run import Run
    from dpq_core.spec import Override, QuantSpec
    from dpq_core.tensor.checkpoint import Checkpoint
    from dpq_core.tensor.hidden_axes import HiddenAxis
    from dpq_core.tensor.partition import Layout

Options = TypeVar("Options", contravariant=True)
"""Type of the frozen dataclass of a verb's options, None for a verb without options."""


class Adapter(ABC):
    """The base of all adapters; those of this repository use the same contract as third parties'.

    Class attributes:
        contract: version of this contract that the class was written for.
        name: the entry-point name.
        aliases: other names by which users may call it.
        summary: description in one line.
        options: verb (``compress``, ``calibrate``, ``evaluate``, ``sample``, ``export``) -> frozen
            dataclass of that verb's options; every field has a default and
            ``metadata={"help": ...}``. The CLI turns them into flags, Python into keywords.
        builtins: the models that ship with the adapter: ``x`` is the source ``builtin:x``.
        exports: the formats of ``export``; one that is the suffix of the output need not be named.
        demo: its part of the demo; None leaves it out.
        recognized: what ``recognizes`` looks for, in a few words for the message of an error.
    """

    contract: ClassVar[int] = 1
    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[Mapping[str, type]] = {}
    aliases: ClassVar[tuple[str, ...]] = ()
    builtins: ClassVar[tuple[str, ...]] = ()
    exports: ClassVar[tuple[str, ...]] = ()
    demo: ClassVar[Demo | None] = None
    recognized: ClassVar[str] = ""

    @abstractmethod
    def open(self, source: str) -> Checkpoint:
        """Open a path, hub id or ``builtin:NAME`` without reading its tensors.

        Raises:
            SourceError: it does not exist, or is not of this domain.
        """

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether a file or folder looks like a source of this domain, so users need not say it.

        It looks at names and small config files, not at weights, and imports no torch.
        """
        return False

    @classmethod
    def default_options(cls, verb: str) -> Any:
        """The options of a verb at their defaults; None where the verb has none."""
        options = cls.options.get(verb)
        return None if options is None else options()

    @classmethod
    def capabilities(cls) -> tuple[str, ...]:
        """The verbs of this adapter besides ``compress`` and ``inspect``."""
        verbs = (verb for verb, protocol in _CAPABILITIES.items() if issubclass(cls, protocol))
        return tuple(verb for verb in verbs if verb != "export" or cls.exports)


class TensorAdapter(Adapter, Generic[Options]):
    """The adapter of a model of named tensors; its artifacts are folders of weight files.

    ``Options`` are those of ``compress``.

    Class attributes:
        data_by_default: whether models of this domain are quantized with data unless the user says
            otherwise; the adapter then has ``calibration``.
        trellis_by_default: whether the presets ``standard`` and ``best`` store trellis codes here,
            which have less error in the same bytes, and take longer to decode.
        training_after_data: settings of the training that the preset ``best`` adds to compressing
            with data, where others than the defaults are worth their time here: fields of
            ``CalibrateSettings``.
    """

    data_by_default: ClassVar[bool] = False
    trellis_by_default: ClassVar[bool] = False
    training_after_data: ClassVar[Mapping[str, Any]] = {}

    def open_with(self, source: str, options: Options) -> Checkpoint:
        """``open`` with the adapter's own options for ``compress``."""
        return self.open(source)

    def looks_at_data(self, source: str, options: Options) -> bool:
        """Whether a source is quantized with data unless the user says otherwise.

        An adapter overrides this where only some models are; ``data_by_default`` stays False there.

        Args:
            source: the source, as ``open`` takes it.
            options: the adapter's own options for ``compress``.

        Raises:
            SourceError: there is no such source.
        """
        return self.data_by_default

    def select(self, name: str, shape: tuple[int, ...]) -> Layout | None:
        """The layout of a tensor as a matrix where it is compressed; None keeps it dense.

        Called for floating-point tensors only. An adapter overrides this where names and shapes
        tell what a tensor is, and ``layouts`` where the checkpoint has to be asked.
        """
        return None

    def layouts(self, checkpoint: Checkpoint) -> Mapping[str, Layout]:
        """The layout as a matrix of every tensor that is compressed; the others stay dense."""
        layouts = {
            name: self.select(name, info.shape)
            for name, info in checkpoint.tensors.items()
            if info.dtype.is_floating_point
        }
        return {name: layout for name, layout in layouts.items() if layout is not None}

    def weights_names(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        """The stem of the weight files of each component (``model`` for ``model.safetensors``).

        In a model of several components, the tensors of component C are called ``C/...``; each
        component has its own weight files, in which the names lack the prefix.
        """
        return {"": "model"}

    def overrides(self, spec: QuantSpec, checkpoint: Checkpoint) -> tuple[Override, ...]:
        """The adapter's own policy for sensitive tensors; the user's overrides come after it."""
        return ()

    def hidden_axes(self, checkpoint: Checkpoint) -> Iterable[HiddenAxis]:
        """The hidden axes whose units can be reordered, such as that of an MLP between its layers.

        Columns that the spec permutes are reordered on both sides of the axis, without a cost in
        bytes or time. The functions between must act on each unit alone. The engine leaves out axes
        whose tensors are missing or do not fit.
        """
        return ()

    def generated_files(self, checkpoint: Checkpoint, manifest: Manifest) -> Mapping[str, bytes]:
        """The files to write beside the weights (config, model card): relative path -> content."""
        return {}


class FileAdapter(Adapter, Generic[Options]):
    """The adapter that codes a whole source into one ``.dpq`` file.

    ``Options`` are those of ``compress``.
    """

    @abstractmethod
    def pack(self, source: str, options: Options, run: Run) -> Packed:
        """The whole source, coded for one file."""


@runtime_checkable
class PacksWithin(Protocol[Options]):
    """A ``FileAdapter`` that fits its file to a number of bytes."""

    @abstractmethod
    def pack_within(self, source: str, options: Options, budget: int, run: Run) -> Packed:
        """The whole source, coded with the best quality in at most ``budget`` bytes."""


@runtime_checkable
class Loads(Protocol):
    """An adapter that loads models."""

    @abstractmethod
    def load(self, source: str, run: Run) -> Any:
        """Load a runnable model from an artifact or from an uncompressed source."""


@runtime_checkable
class Compiles(Protocol):
    """An adapter that has compiled code by which models run faster on the CPU."""

    @abstractmethod
    def load_compiled(self, source: str, run: Run) -> Any:
        """Load a model to run by compiled code; where it cannot, warn why and load as usual."""


@runtime_checkable
class Calibrates(Protocol[Options]):
    """An adapter that has data and a loss for training."""

    @abstractmethod
    def calibration(
        self, source: str, baseline: str, options: Options, run: Run
    ) -> CalibrationTask:
        """The task of a calibration: student, teacher, batches and loss.

        Args:
            source: an artifact, the student (see ``dpq_core.calibrate.layers.prepare_student``).
            baseline: the uncompressed model from which it was made, the teacher.
            options: an instance of ``options["calibrate"]``.
            run: device and seed; progress is shown by the loop.
        """


@runtime_checkable
class Evaluates(Protocol[Options]):
    """An adapter that measures models."""

    @abstractmethod
    def evaluate(self, source: str, options: Options, run: Run) -> Evaluation:
        """Measure an artifact or an uncompressed source on the domain's own task."""


@runtime_checkable
class Samples(Protocol[Options]):
    """An adapter whose models generate samples."""

    @abstractmethod
    def sample(self, source: str, options: Options, run: Run, out: Path | None) -> Sampling:
        """Let the model generate samples to look at; files go to ``out``."""


@runtime_checkable
class Exports(Protocol[Options]):
    """An adapter that writes the formats of its ecosystem."""

    @abstractmethod
    def export(self, source: str, to: str, options: Options, run: Run, out: Path) -> Export:
        """Write an artifact or an uncompressed source in a format of its ecosystem.

        ``to`` is one of ``exports``. ``out`` appears complete or not at all, and replaces what is
        there: the caller has checked that it may.
        """


@runtime_checkable
class Serves(Protocol):
    """An adapter whose models answer requests over HTTP."""

    @abstractmethod
    def serve(self, source: str, host: str, port: int, run: Run, engine: str) -> None:
        """Serve a model until interrupted; ``engine`` says what runs it, ``auto`` leaves it open.

        Raises:
            SpecError: there is no such engine.
        """


@runtime_checkable
class Probes(Protocol):
    """An adapter whose artifacts can be run on a fixed input."""

    @abstractmethod
    def probe(self, artifact: Artifact, run: Run) -> Mapping[str, torch.Tensor]:
        """Outputs of the loaded artifact on a fixed input, to be stored and compared later.

        The artifact may be unfinished: load it by ``artifact.path``, do not open it again.
        """


_CAPABILITIES: Mapping[str, type] = {
    "load": Loads,
    "evaluate": Evaluates,
    "time": Times,
    "sample": Samples,
    "export": Exports,
    "serve": Serves,
    "probe": Probes,
    "calibrate": Calibrates,
}
"""The protocol of each verb that an adapter may have or not."""


def lacks(adapter: Adapter, what: str) -> AdapterError:
    """The error for a verb that an adapter does not have."""
    return AdapterError(f"adapter {adapter.name!r} cannot {what} (see `dpq adapters`)")
