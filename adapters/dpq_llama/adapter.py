"""LlamaAdapter: what dpq has to know about decoder-only language models.

Everything that needs torch is imported by the method that uses it: `dpq adapters` stays quick.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from dpq_core.errors import AdapterError
from dpq_core.plugin.adapter import (
    Calibrates,
    Compiles,
    Evaluates,
    Exports,
    Loads,
    Probes,
    Samples,
    Serves,
    TensorAdapter,
)
from dpq_core.plugin.results import Demo, Evaluation, Export, Metric, Sampling
from dpq_core.run import Run
from dpq_llama.options import (
    EXPORTS,
    CalibrateOptions,
    EvaluateOptions,
    ExportOptions,
    SampleOptions,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from dpq_core.artifact import Artifact, Manifest
    from dpq_core.data.task import CalibrationTask
    from dpq_core.spec import Override, QuantSpec
    from dpq_core.tensor.checkpoint import Checkpoint
    from dpq_core.tensor.hidden_axes import HiddenAxis
    from dpq_core.tensor.partition import Layout
    from dpq_llama.families.layers import DecoderLayers


class LlamaAdapter(
    TensorAdapter[None],
    Loads,
    Compiles,
    Calibrates[CalibrateOptions],
    Evaluates[EvaluateOptions],
    Samples[SampleOptions],
    Exports[ExportOptions],
    Serves,
    Probes,
):
    """Decoder-only language models of transformers: local folders, hub ids, ``builtin:NAME``."""

    name: ClassVar[str] = "llama"
    aliases: ClassVar[tuple[str, ...]] = ("llm",)
    summary: ClassVar[str] = "decoder-only language models (transformers folders, hub ids)"
    data_by_default: ClassVar[bool] = True
    trellis_by_default: ClassVar[bool] = True
    training_after_data: ClassVar[Mapping[str, Any]] = {
        "steps": 12,  # of thousands of tokens each
        "lr": 3e-4,
        "estep": "none",
        "validate_every": 6,
    }
    builtins: ClassVar[tuple[str, ...]] = ("tiny-llama",)
    demo: ClassVar[Demo] = Demo(
        source="builtin:tiny-llama", evaluate={"limit": 24}, sample={"max_new_tokens": 48}
    )
    options: ClassVar[Mapping[str, type]] = {
        "calibrate": CalibrateOptions,
        "evaluate": EvaluateOptions,
        "sample": SampleOptions,
        "export": ExportOptions,
    }
    exports: ClassVar[tuple[str, ...]] = EXPORTS
    recognized: ClassVar[str] = "a folder whose config.json has a model_type, or a .gguf file"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether it is a model folder of transformers, or a GGUF file (refused with advice)."""
        from dpq_hf.sources import config_of, is_pipeline

        if path.is_file():
            return path.suffix == ".gguf"
        config = config_of(path)
        return "model_type" in config and "_class_name" not in config and not is_pipeline(path)

    def open(self, source: str) -> Checkpoint:
        """Open an uncompressed model without reading its tensors."""
        from dpq_llama.source.checkpoint import open_checkpoint

        return open_checkpoint(source)

    def layouts(self, checkpoint: Checkpoint) -> Mapping[str, Layout]:
        """Compress the layers of the decoder, the embedding and the head; keep norms and biases."""
        layers = _layers_of(checkpoint)
        layouts = {n: layers.layout_of(n, info.shape) for n, info in checkpoint.tensors.items()}
        return {name: layout for name, layout in layouts.items() if layout is not None}

    def overrides(self, spec: QuantSpec, checkpoint: Checkpoint) -> tuple[Override, ...]:
        """Give the embedding and the head the bits that measurement showed to pay off."""
        from dpq_llama.families.policy import policy

        return policy(spec, _layers_of(checkpoint).embeddings_among(checkpoint.tensors))

    def hidden_axes(self, checkpoint: Checkpoint) -> Iterable[HiddenAxis]:
        """The inner units of the MLPs."""
        from dpq_llama.families.policy import hidden_axes

        return hidden_axes({name: info.shape for name, info in checkpoint.tensors.items()})

    def generated_files(self, checkpoint: Checkpoint, manifest: Manifest) -> Mapping[str, bytes]:
        """The config that ``from_pretrained`` reads, a model card, a loader stub."""
        from dpq_llama.hub.artifact_files import generated_files
        from dpq_llama.source.checkpoint import LlamaCheckpoint

        if not isinstance(checkpoint, LlamaCheckpoint):
            raise _not_opened(checkpoint)
        return generated_files(checkpoint, manifest)

    def load(self, source: str, run: Run) -> Any:
        """The transformers model, ready for inference."""
        from dpq_llama.source.loading import load_model

        return load_model(source, run.device)

    def load_compiled(self, source: str, run: Run) -> Any:
        """The model with compiled decoding, on the CPU; see ``compiled.decoder``."""
        from dpq_llama.compiled.decoder import load_compiled

        return load_compiled(source)

    def calibration(
        self, source: str, baseline: str, options: CalibrateOptions, run: Run
    ) -> CalibrationTask:
        """The compressed model against the original, on text files, a data set or its own text."""
        from dpq_llama.calibration.task import calibration

        return calibration(source, baseline, options, run)

    def evaluate(self, source: str, options: EvaluateOptions, run: Run) -> Evaluation:
        """Perplexity of a text, lm-eval tasks, or both."""
        from dpq_llama.evaluation.evaluate import evaluate

        return evaluate(source, options, run)

    def speed(self, source: str, run: Run) -> Metric:
        """Tokens per second of greedy generation, by compiled code where it runs the model."""
        from dpq_llama.evaluation.generation import speed

        return speed(source, run)

    def sample(self, source: str, options: SampleOptions, run: Run, out: Path | None) -> Sampling:
        """Continue prompts; with ``out``, each text also becomes a file."""
        from dpq_llama.evaluation.generation import sample

        return sample(source, options, run, out)

    def export(self, source: str, to: str, options: ExportOptions, run: Run, out: Path) -> Export:
        """A dense folder in the Hugging Face layout, or a GGUF file."""
        from dpq_llama.export.source import open_source

        if to == "gguf":
            from dpq_llama.export.gguf_file import write_gguf

            return write_gguf(source, open_source(source), out, options, run)
        from dpq_llama.export.folder import write_folder

        return write_folder(open_source(source), out, options.shard_size, run)

    def serve(self, source: str, host: str, port: int, run: Run, engine: str) -> None:
        """The OpenAI-compatible server of transformers."""
        from dpq_llama.serving import serve

        serve(source, host, port, run, engine)

    def probe(self, artifact: Artifact, run: Run) -> Mapping[str, torch.Tensor]:
        """Logits of a fixed token sequence."""
        from dpq_llama.evaluation.generation import probe

        return probe(artifact.path, run)


def _layers_of(checkpoint: Checkpoint) -> DecoderLayers:
    """The layers of an uncompressed checkpoint, or of a model in memory."""
    from dpq_hf.quantize_loaded import LoadedModel
    from dpq_llama.families.layers import DecoderLayers
    from dpq_llama.source.checkpoint import LlamaCheckpoint

    if isinstance(checkpoint, LlamaCheckpoint):
        return checkpoint.layers
    if isinstance(checkpoint, LoadedModel):
        return DecoderLayers(cast("PreTrainedModel", checkpoint.model))
    raise _not_opened(checkpoint)


def _not_opened(checkpoint: Checkpoint) -> AdapterError:
    return AdapterError(f"{checkpoint.source}: not opened by the llama adapter")
