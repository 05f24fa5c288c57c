"""LlamaAdapter: what dpq has to know about LLaMA-style causal language models.

Everything that needs torch is imported by the method that uses it: `dpq adapters` stays quick.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dpq_core.errors import AdapterError
from dpq_core.plugin.adapter import Calibrates, Evaluates, Loads, Probes, Samples, TensorAdapter
from dpq_core.plugin.results import Demo, Evaluation, Sampling
from dpq_core.run import Run
from dpq_llama.options import CalibrateOptions, EvaluateOptions, SampleOptions

if TYPE_CHECKING:
    import torch

    from dpq_core.artifact import Artifact, Manifest
    from dpq_core.data.task import CalibrationTask
    from dpq_core.spec import Override, QuantSpec
    from dpq_core.tensor.checkpoint import Checkpoint
    from dpq_core.tensor.hidden_axes import HiddenAxis
    from dpq_core.tensor.partition import Layout


class LlamaAdapter(
    TensorAdapter[None],
    Loads,
    Calibrates[CalibrateOptions],
    Evaluates[EvaluateOptions],
    Samples[SampleOptions],
    Probes,
):
    """Llama checkpoints in safetensors: local folders, hub ids and ``builtin:NAME``."""

    name: ClassVar[str] = "llama"
    summary: ClassVar[str] = "LLaMA-style causal language models (Hugging Face folders, hub ids)"
    data_by_default: ClassVar[bool] = True
    builtins: ClassVar[tuple[str, ...]] = ("tiny-llama",)
    demo: ClassVar[Demo] = Demo(
        source="builtin:tiny-llama", evaluate={"limit": 24}, sample={"max_new_tokens": 48}
    )
    options: ClassVar[Mapping[str, type]] = {
        "calibrate": CalibrateOptions,
        "evaluate": EvaluateOptions,
        "sample": SampleOptions,
    }

    def open(self, source: str) -> Checkpoint:
        """Open an uncompressed model without reading its tensors."""
        from dpq_llama.source.checkpoint import open_checkpoint

        return open_checkpoint(source)

    def select(self, name: str, shape: tuple[int, ...]) -> Layout | None:
        """Compress the Linear weights, the embedding and the head; keep norms and biases."""
        from dpq_llama.families.llama import layout_of

        return layout_of(name, shape)

    def overrides(self, spec: QuantSpec) -> tuple[Override, ...]:
        """Give the embedding and the head the bits that measurement showed to pay off."""
        from dpq_llama.families.llama import policy

        return policy(spec)

    def hidden_axes(self, checkpoint: Checkpoint) -> Iterable[HiddenAxis]:
        """The inner units of the MLPs."""
        from dpq_llama.families.llama import hidden_axes

        return hidden_axes(checkpoint.tensors)

    def generated_files(self, checkpoint: Checkpoint, manifest: Manifest) -> Mapping[str, bytes]:
        """The config that ``from_pretrained`` reads, a model card, a loader stub."""
        from dpq_llama.hub.artifact_files import generated_files
        from dpq_llama.source.checkpoint import LlamaCheckpoint

        if not isinstance(checkpoint, LlamaCheckpoint):
            raise AdapterError(f"{checkpoint.source}: not opened by the llama adapter")
        return generated_files(checkpoint, manifest)

    def load(self, source: str, run: Run) -> Any:
        """The transformers model, ready for inference."""
        from dpq_llama.source.loading import load_model

        return load_model(source, run.device)

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

    def sample(self, source: str, options: SampleOptions, run: Run, out: Path | None) -> Sampling:
        """Continue prompts; with ``out``, each text also becomes a file."""
        from dpq_llama.evaluation.generation import sample

        return sample(source, options, run, out)

    def probe(self, artifact: Artifact, run: Run) -> Mapping[str, torch.Tensor]:
        """Logits of a fixed token sequence."""
        from dpq_llama.evaluation.generation import probe

        return probe(artifact.path, run)
