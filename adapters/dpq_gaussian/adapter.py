"""The adapter through which dpq compresses trained 3D Gaussian Splatting scenes.

Everything that needs torch or numba is imported by the method that uses it: `dpq adapters` stays
quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dpq_core.plugin.adapter import (
    Calibrates,
    Evaluates,
    Exports,
    FileAdapter,
    Loads,
    PacksWithin,
    Samples,
)
from dpq_core.plugin.results import Demo, Evaluation, Export, Sampling
from dpq_core.run import Run
from dpq_gaussian.options import (
    EXPORTS,
    CalibrateOptions,
    CompressOptions,
    EvaluateOptions,
    ExportOptions,
    SampleOptions,
)
from dpq_gaussian.suffixes import READABLE

if TYPE_CHECKING:
    from dpq_core.artifact.single_writer import Packed
    from dpq_core.data.task import CalibrationTask
    from dpq_core.tensor.checkpoint import Checkpoint


class GaussianAdapter(
    FileAdapter[CompressOptions],
    PacksWithin[CompressOptions],
    Loads,
    Calibrates[CalibrateOptions],
    Evaluates[EvaluateOptions],
    Samples[SampleOptions],
    Exports[ExportOptions],
):
    """Scenes in .ply, compressed.ply, .splat, .spz and .sog, and ``builtin:NAME``."""

    name: ClassVar[str] = "gaussian"
    summary: ClassVar[str] = "3D Gaussian splat scenes (.ply, .splat, .spz, .sog) in one .dpq file"
    builtins: ClassVar[tuple[str, ...]] = ("tiny-scene",)
    demo: ClassVar[Demo] = Demo(
        source="builtin:tiny-scene",
        evaluate={"limit": 5},
        sample={"frames": 12, "width": 256},
        sample_against={"baseline": "builtin:tiny-scene"},
        presets=("high", "balanced", "small"),
        shown=("PSNR to the photographs", "PSNR to the original", "SSIM to the original"),
    )
    options: ClassVar[Mapping[str, type]] = {
        "compress": CompressOptions,
        "calibrate": CalibrateOptions,
        "evaluate": EvaluateOptions,
        "sample": SampleOptions,
        "export": ExportOptions,
    }
    exports: ClassVar[tuple[str, ...]] = EXPORTS
    recognized: ClassVar[str] = f"a file that ends with {', '.join(READABLE)}"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether it is a file with the suffix of a splat format."""
        return path.is_file() and path.name.lower().endswith(READABLE)

    def open(self, source: str) -> Checkpoint:
        """Opens a scene as a checkpoint, whose tensors are the attributes."""
        from dpq_gaussian.loading import SceneCheckpoint

        return SceneCheckpoint(source)

    def pack(self, source: str, options: CompressOptions, run: Run) -> Packed:
        """Codes a scene into the streams of one ``.dpq`` file."""
        from dpq_gaussian.compress import pack

        return pack(source, options, run)

    def pack_within(self, source: str, options: CompressOptions, budget: int, run: Run) -> Packed:
        """Codes a scene into at most ``budget`` bytes, with steps chosen for them."""
        from dpq_gaussian.budget import pack_within

        return pack_within(source, options, budget, run)

    def load(self, source: str, run: Run) -> Any:
        """Loads a ``Scene`` from any source, and decodes it where it is compressed."""
        from dpq_gaussian.loading import load_scene

        return load_scene(source)

    def calibration(
        self, source: str, baseline: str, options: CalibrateOptions, run: Run
    ) -> CalibrationTask:
        """Prepares a compressed scene for training on photographs or the original's pictures."""
        from dpq_gaussian.calibration.task import calibration

        return calibration(source, baseline, options, run)

    def evaluate(self, source: str, options: EvaluateOptions, run: Run) -> Evaluation:
        """Measures the quality of pictures, the size, the times and the errors of a scene."""
        from dpq_gaussian.evaluation.evaluate import evaluate

        return evaluate(source, options, run)

    def sample(self, source: str, options: SampleOptions, run: Run, out: Path | None) -> Sampling:
        """Draws pictures from given cameras and along an orbit."""
        from dpq_gaussian.sample import sample

        return sample(source, options, run, out)

    def export(self, source: str, to: str, options: ExportOptions, run: Run, out: Path) -> Export:
        """Writes a scene as .ply, .splat or .spz."""
        from dpq_gaussian.export import export

        return export(source, to, options, run, out)
