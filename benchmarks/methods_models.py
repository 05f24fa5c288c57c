"""The two models of ``suites/methods.py``: their layers, inputs on calibration data, and task.

Only the linear layers of the blocks are quantized. Embedding and head of the LLaMA, and whatever of
the DiT is outside the blocks or in the timestep's and class's embedders, stay uncompressed in every
cell and are not counted: the comparison is of methods, not of policies.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dpq_core.data.statistics import collect
from dpq_core.plugin.adapter import Adapter
from dpq_core.run import Run


class Bench(ABC):
    """A model that can be given other weights and measured.

    Attributes:
        source: as ``dpq`` names it.
        metric: key of what ``score`` returns.
        higher_is_better: of that.
        protocol: how it is measured and what the statistics come from, one phrase each.
        weights: layer -> its uncompressed weight, float32 ``[rows, cols]``.
    """

    source: str
    metric: str
    higher_is_better: bool
    protocol: ClassVar[dict[str, str]]

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
        self.model, self.layers = model, layers
        self.weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}

    @torch.no_grad()
    def hessians(self) -> dict[str, Tensor]:
        """E[x x^T] of every layer's input in the uncompressed model, float32 ``[cols, cols]``."""
        self.restore()
        found = collect(self.model, self.layers, self.forward)
        matrices = {name: one.hessian for name, one in found.items()}
        return {name: matrix for name, matrix in matrices.items() if matrix is not None}

    @torch.no_grad()
    def put(self, name: str, weight: Tensor) -> None:
        """Replace a layer's weight by another of its shape."""
        self.layers[name].weight.copy_(weight)

    def restore(self) -> None:
        """Undo every ``put``."""
        for name, weight in self.weights.items():
            self.put(name, weight)

    def forward(self) -> None:
        """Run the model over the calibration data."""
        for batch in self.batches():
            batch()

    @abstractmethod
    def batches(self, size: int = 6) -> Iterable[Callable[[], Any]]:
        """Forward passes over the calibration data, ``size`` samples each."""

    @abstractmethod
    def score(self, artifact: str = "") -> float:
        """The task metric with the weights as they are, or of an artifact of this model."""

    @abstractmethod
    def adapter(self) -> Adapter:
        """Of its domain."""

    @abstractmethod
    def tensor(self, layer: str) -> str:
        """Name of a layer's weight in the checkpoint."""

    @abstractmethod
    def calibrate_options(self, folder: Path) -> Any:
        """What ``dpq calibrate`` is to look at; files may be put into the folder."""

    def blocks(self) -> Sequence[str]:
        """Paths of the blocks, in order, for training one after the other."""
        return list(dict.fromkeys(re.split(r"(?<=\.\d)\.", name)[0] for name in self.layers))


class Llama(Bench):
    """``builtin:tiny-llama``: perplexity of its held-out text."""

    source, metric, higher_is_better = "builtin:tiny-llama", "perplexity", False
    context, windows, calibration = 512, 24, 48
    protocol: ClassVar[dict[str, str]] = {
        "task": f"the first {windows} windows of {context} tokens of the held-out text",
        "statistics": f"{calibration} windows of {context} tokens of training documents",
    }

    def __init__(self) -> None:
        from peers_common import calibration_windows
        from transformers import AutoTokenizer

        from dpq_llama.evaluation.perplexity import read_texts, tokenize
        from dpq_llama.source.checkpoint import locate
        from dpq_llama.source.loading import load_model

        model, root = load_model(self.source, "cpu").float(), locate(self.source)
        tokenizer = AutoTokenizer.from_pretrained(root)
        self._ids = tokenize(tokenizer, read_texts((root / "heldout.txt",)))
        self._data = calibration_windows(tokenizer, self.calibration, self.context)
        layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear) and name != "lm_head"
        }
        super().__init__(model, layers)

    def batches(self, size: int = 6) -> Iterable[Callable[[], Any]]:
        """The calibration windows."""
        for batch in self._data.split(size):
            yield partial(self.model, input_ids=batch, use_cache=False)

    def score(self, artifact: str = "") -> float:
        """Perplexity."""
        from dpq_llama.evaluation.perplexity import score
        from dpq_llama.source.loading import load_model

        model: Any = load_model(artifact, "cpu") if artifact else self.model
        return score(model, self._ids, self.context, limit=self.windows).perplexity

    def adapter(self) -> Adapter:
        """Of language models."""
        from dpq_llama.adapter import LlamaAdapter

        return LlamaAdapter()

    def tensor(self, layer: str) -> str:
        """As transformers names it."""
        return f"{layer}.weight"

    def calibrate_options(self, folder: Path) -> Any:
        """Training documents."""
        from peers_common import calibration_documents

        from dpq_llama.options import CalibrateOptions

        text = folder / "calibration.txt"
        documents = calibration_documents(2 * self.calibration * self.context)
        text.write_text("\n\n".join(text for _, text in documents), encoding="utf-8")
        return CalibrateOptions(
            texts=(str(text),), context=256, samples=96, batch_size=4, validation_samples=8
        )


class DiT(Bench):
    """``builtin:tiny-dit``: PSNR of images to those of the uncompressed model at equal seeds."""

    source, metric, higher_is_better = "builtin:tiny-dit", "psnr_dB", True
    images, steps = 32, 10
    calibration, calibration_steps = 16, 23  # other timesteps than those of the task, but the last
    protocol: ClassVar[dict[str, str]] = {
        "task": f"{images} images at {steps} steps and guidance 1.5, against the uncompressed "
        "model's at the same seeds",
        "statistics": f"{calibration} images at {calibration_steps} steps, drawn by the "
        "uncompressed model at other seeds and other timesteps",
    }

    def __init__(self) -> None:
        from dpq_diffusion.pipelines.conditions import make_items
        from dpq_diffusion.pipelines.loading import load_pipeline
        from dpq_diffusion.sampling.samplers import RequestedSettings, make_sampler
        from dpq_diffusion.source.architecture import layout_of

        pipeline = load_pipeline(self.source, Run(device="cpu"))
        self._wish = RequestedSettings(steps=self.steps, guidance=1.5, scheduler="auto")
        self._sampler = make_sampler(pipeline, self._wish)
        other = RequestedSettings(steps=self.calibration_steps, guidance=1.5, scheduler="auto")
        self._other = make_sampler(pipeline, other)
        conditions = self._sampler.conditions((), ())
        self._items = make_items(conditions, self.images, 0)
        self._data = make_items(conditions, self.calibration, 1_000_000)
        model = pipeline.transformer
        layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear)
            and name.startswith("transformer_blocks.")
            and "embedder" not in name
            and layout_of(f"{name}.weight", tuple(layer.weight.shape))
        }
        super().__init__(model, layers)
        self._original = self._sampler.draw(self._items)

    def batches(self, size: int = calibration) -> Iterable[Callable[[], Any]]:
        """The calibration images."""
        for first in range(0, len(self._data), size):
            yield partial(self._other.draw, self._data[first : first + size])

    def score(self, artifact: str = "") -> float:
        """Decibels."""
        from dpq_core.plugin.image_metrics import mean_squared_error, ssim
        from dpq_diffusion.pipelines.loading import load_pipeline
        from dpq_diffusion.sampling.image_pairs import ImageFidelity
        from dpq_diffusion.sampling.samplers import make_sampler

        sampler = self._sampler
        if artifact:
            sampler = make_sampler(load_pipeline(artifact, Run(device="cpu")), self._wish)
        images = sampler.draw(self._items)
        pair = images, self._original
        return float(ImageFidelity(mean_squared_error(*pair), ssim(*pair)).psnr)

    def adapter(self) -> Adapter:
        """Of diffusion models."""
        from dpq_diffusion.adapter import DiffusionAdapter

        return DiffusionAdapter()

    def tensor(self, layer: str) -> str:
        """The pipeline's component comes first."""
        return f"transformer/{layer}.weight"

    def calibrate_options(self, folder: Path) -> Any:
        """Trajectories of the uncompressed model."""
        from dpq_diffusion.options import CalibrateOptions

        return CalibrateOptions(
            trajectories=32,
            sampling_steps=self.calibration_steps,
            batch_size=32,
            validation_samples=64,
        )


BENCHES: dict[str, type[Bench]] = {"tiny-llama": Llama, "tiny-dit": DiT}
