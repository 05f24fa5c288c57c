"""The two models of ``suites/methods.py``: their layers, inputs on calibration data, and task.

Only the linear layers of the blocks are quantized. Embedding and head of the LLaMA, and whatever of
the DiT is outside the blocks or in the timestep's and class's embedders, stay uncompressed in every
cell and are not counted: the comparison is of methods, not of policies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dpq_core.adapter import Run
from dpq_core.statistics import collect


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

    @abstractmethod
    def forward(self) -> None:
        """Run the model over the calibration data."""

    @abstractmethod
    def score(self) -> float:
        """The task metric with the weights as they are."""


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

        from dpq_llama.architecture import layout_of
        from dpq_llama.loading import load_model
        from dpq_llama.perplexity import read_texts, tokenize
        from dpq_llama.source import locate

        model, root = load_model(self.source, "cpu").float(), locate(self.source)
        tokenizer = AutoTokenizer.from_pretrained(root)
        self._ids = tokenize(tokenizer, read_texts((root / "heldout.txt",)))
        self._data = calibration_windows(tokenizer, self.calibration, self.context)
        layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear)
            and name != "lm_head"
            and layout_of(f"{name}.weight", tuple(layer.weight.shape))
        }
        super().__init__(model, layers)

    def forward(self) -> None:
        """Run the model over the calibration windows."""
        for batch in self._data.split(8):
            self.model(input_ids=batch)

    def score(self) -> float:
        """Perplexity."""
        from dpq_llama.perplexity import score

        model: Any = self.model
        return score(model, self._ids, self.context, limit=self.windows).perplexity


class DiT(Bench):
    """``builtin:tiny-dit``: PSNR of images to those of the uncompressed model at equal seeds."""

    source, metric, higher_is_better = "builtin:tiny-dit", "psnr_dB", True
    images, steps, calibration = 32, 10, 32
    protocol: ClassVar[dict[str, str]] = {
        "task": f"{images} images at {steps} steps and guidance 1.5, against the uncompressed "
        "model's at the same seeds",
        "statistics": f"{calibration} images at {steps} steps, drawn by the uncompressed model at "
        "other seeds",
    }

    def __init__(self) -> None:
        from dpq_diffusion.architecture import layout_of
        from dpq_diffusion.conditions import make_items
        from dpq_diffusion.loading import load_pipeline
        from dpq_diffusion.samplers import Wish, make_sampler

        pipeline = load_pipeline(self.source, Run(device="cpu"))
        wish = Wish(steps=self.steps, guidance=1.5, scheduler="auto")
        self._sampler = make_sampler(pipeline, wish)
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

    def forward(self) -> None:
        """Draw the calibration images."""
        self._sampler.draw(self._data)

    def score(self) -> float:
        """Decibels."""
        from dpq_diffusion.metrics import ImageFidelity, pixel_mse, ssim

        images = self._sampler.draw(self._items)
        pair = images, self._original
        return float(ImageFidelity(pixel_mse(*pair), ssim(*pair)).psnr)


BENCHES: dict[str, type[Bench]] = {"tiny-llama": Llama, "tiny-dit": DiT}
