"""The adapter of diffusion models: what dpq has to know about their pipelines.

Everything that needs torch is imported by the method that uses it: `dpq adapters` stays quick.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dpq_core.errors import AdapterError
from dpq_core.plugin.adapter import Calibrates, Evaluates, Loads, Probes, Samples, TensorAdapter
from dpq_core.plugin.results import Demo, Evaluation, Metric, Sampling
from dpq_core.run import Run
from dpq_diffusion.options import CalibrateOptions, CompressOptions, EvaluateOptions, SampleOptions

if TYPE_CHECKING:
    import torch

    from dpq_core.artifact import Artifact, Manifest
    from dpq_core.data.task import CalibrationTask
    from dpq_core.spec import Override, QuantSpec
    from dpq_core.tensor.checkpoint import Checkpoint
    from dpq_core.tensor.hidden_axes import HiddenAxis
    from dpq_core.tensor.partition import Layout
    from dpq_diffusion.source.checkpoint import DiffusionCheckpoint


_DRAWN_QUICKLY = {"scheduler": "dpmsolver++", "sampling_steps": 10, "batch_size": 20}


class DiffusionAdapter(
    TensorAdapter[CompressOptions],
    Loads,
    Calibrates[CalibrateOptions],
    Evaluates[EvaluateOptions],
    Samples[SampleOptions],
    Probes,
):
    """Pipelines of diffusers in safetensors, and original DiT and LDM checkpoints."""

    name: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "diffusion models (diffusers folders, hub ids, DiT .pt, LDM .ckpt)"
    builtins: ClassVar[tuple[str, ...]] = ("tiny-dit",)
    demo: ClassVar[Demo] = Demo(
        source="builtin:tiny-dit",
        evaluate={**_DRAWN_QUICKLY, "count": 40, "folder": Demo.SAMPLES},
        sample={**_DRAWN_QUICKLY, "columns": 4},
        evaluate_against={"baseline": Demo.ORIGINAL, "baseline_count": 40},
        sample_against={"baseline": Demo.ORIGINAL},
    )
    options: ClassVar[Mapping[str, type]] = {
        "calibrate": CalibrateOptions,
        "compress": CompressOptions,
        "evaluate": EvaluateOptions,
        "sample": SampleOptions,
    }
    recognized: ClassVar[str] = (
        "a folder with model_index.json or a config.json with _class_name, or a .pt, .pth or .ckpt "
        "file"
    )

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether it is a pipeline or component of diffusers, or an original checkpoint."""
        from dpq_diffusion.folders import ORIGINAL_SUFFIXES
        from dpq_hf.sources import config_of, is_pipeline

        if path.is_file():
            return path.suffix in ORIGINAL_SUFFIXES
        return is_pipeline(path) or "_class_name" in config_of(path)

    def open(self, source: str) -> Checkpoint:
        """Open the denoiser without reading its tensors."""
        return self.open_with(source, CompressOptions())

    def open_with(self, source: str, options: CompressOptions) -> Checkpoint:
        """Open the components to compress, by default the denoiser."""
        from dpq_diffusion.source.checkpoint import open_checkpoint

        return open_checkpoint(source, options.names)

    def looks_at_data(self, source: str, options: CompressOptions) -> bool:
        """True for diffusion transformers of classes: they draw their data themselves, in minutes.

        A UNet is no chain of blocks, so that it would run once for each of its layers; and
        text-to-image pipelines need prompts.
        """
        from dpq_diffusion.folders import has_class_transformer
        from dpq_diffusion.source.locate import locate

        denoiser = not options.names or "transformer" in options.names
        return denoiser and has_class_transformer(locate(source))

    def weights_names(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        """The weight file of each component, named as diffusers looks for it."""
        return _own(checkpoint).weights

    def select(self, name: str, shape: tuple[int, ...]) -> Layout | None:
        """The layout of a tensor that is compressed: Linear and Conv2d weights, and class tables.

        Norms, biases and tensors of less than 4,096 weights are kept: None.
        """
        from dpq_diffusion.source.architecture import layout_of

        return layout_of(name, shape)

    def overrides(self, spec: QuantSpec, checkpoint: Checkpoint) -> tuple[Override, ...]:
        """The overrides that give more bits to the sensitive first and last layers."""
        from dpq_diffusion.source.architecture import policy

        return policy(spec)

    def hidden_axes(self, checkpoint: Checkpoint) -> Iterable[HiddenAxis]:
        """The inner axes of the feed-forward layers, whose units may be reordered."""
        from dpq_diffusion.source.architecture import hidden_axes

        return hidden_axes({name: info.shape for name, info in checkpoint.tensors.items()})

    def generated_files(self, checkpoint: Checkpoint, manifest: Manifest) -> Mapping[str, bytes]:
        """The configs that ``from_pretrained`` reads, and a model card."""
        from dpq_diffusion.hub.files import generated_files

        return generated_files(_own(checkpoint), manifest)

    def load(self, source: str, run: Run) -> Any:
        """The diffusers pipeline, ready to sample."""
        from dpq_diffusion.pipelines.loading import load_pipeline

        return load_pipeline(source, run)

    def calibration(
        self, source: str, baseline: str, options: CalibrateOptions, run: Run
    ) -> CalibrationTask:
        """The calibration task of a denoiser: the uncompressed one as teacher, noisy samples."""
        from dpq_diffusion.calibration.build import calibration

        return calibration(source, baseline, options, run)

    def evaluate(self, source: str, options: EvaluateOptions, run: Run) -> Evaluation:
        """Measure Fréchet distances, precision, recall and fidelity to the uncompressed model."""
        from dpq_diffusion.evaluation.evaluate import evaluate

        return evaluate(source, options, run)

    def speed(self, source: str, run: Run) -> Metric:
        """Denoising steps per second for one picture."""
        from dpq_diffusion.pipelines.probe import speed

        return speed(source, run)

    def sample(self, source: str, options: SampleOptions, run: Run, out: Path | None) -> Sampling:
        """Draw images: a grid, a folder of PNG files, an ADM batch."""
        from dpq_diffusion.sampling.sample import sample

        return sample(source, options, run, out)

    def probe(self, artifact: Artifact, run: Run) -> Mapping[str, torch.Tensor]:
        """Outputs of the compressed components on fixed inputs."""
        from dpq_diffusion.pipelines.probe import probe

        return probe(artifact, run)


def _own(checkpoint: Checkpoint) -> DiffusionCheckpoint:
    from dpq_diffusion.source.checkpoint import DiffusionCheckpoint

    if not isinstance(checkpoint, DiffusionCheckpoint):
        raise AdapterError(f"{checkpoint.source}: not opened by the diffusion adapter")
    return checkpoint
