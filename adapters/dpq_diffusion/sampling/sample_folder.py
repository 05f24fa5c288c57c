"""A folder of samples: numbered PNG files, and the settings by which they were drawn.

Drawing can be interrupted at any time: images that are there are kept, and a folder never holds
images of two models or two groups of settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpq_core.artifact.files import replacing
from dpq_core.errors import SourceError, SpecError
from dpq_core.run import Run
from dpq_diffusion.pipelines.conditions import Condition, Item, make_items
from dpq_diffusion.sampling.images import Images, PngFolder
from dpq_diffusion.sampling.samplers import Sampler, Settings

SETTINGS = "settings.json"
IMAGES = "images"
FORMAT = "dpq-samples-1"

_PROBED = 64  # values per tensor that go into a fingerprint


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """All that decides what a numbered image shows: model, settings, seed and conditions.

    Attributes:
        source: the model as the user named it.
        model: fingerprint of the weights.
        settings: how images are drawn.
        seed: seed of image 0; image i has ``seed + i``.
        conditions: conditions of the images, in turn.
    """

    source: str
    model: str
    settings: Settings
    seed: int
    conditions: tuple[Condition, ...]

    def items(self, count: int) -> list[Item]:
        """The first ``count`` images to draw."""
        return make_items(self.conditions, count, self.seed)

    def to_json(self) -> dict[str, Any]:
        """The provenance as plain JSON values."""
        return {
            "format": FORMAT,
            **asdict(self),
            "conditions": [asdict(c) for c in self.conditions],
        }


def provenance_of(
    source: str, sampler: Sampler, conditions: tuple[Condition, ...], seed: int
) -> Provenance:
    """The provenance of the images that a sampler would draw."""
    return Provenance(
        source=source,
        model=fingerprint(sampler.pipeline),
        settings=sampler.settings,
        seed=seed,
        conditions=conditions,
    )


def fingerprint(pipeline: Any) -> str:
    """A hash in 16 hex digits of every tensor's name, shape and some of its values."""
    digest = hashlib.sha256()
    for name, component in sorted(pipeline.components.items()):
        if isinstance(component, torch.nn.Module):
            for key, tensor in sorted(component.state_dict().items()):
                values = tensor.detach().flatten()
                some = values[:: max(1, values.numel() // _PROBED)].cpu()
                digest.update(f"{name}.{key} {list(tensor.shape)} {tensor.dtype}".encode())
                digest.update(some.double().numpy().tobytes())
    return digest.hexdigest()[:16]


class SampleFolder:
    """The samples under one folder: ``settings.json`` and ``images/000000.png`` onwards."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def image(self, index: int) -> Path:
        """The path of the image with a number, whether it exists or not."""
        return self.path / IMAGES / f"{index:06d}.png"

    def missing(self, count: int) -> list[int]:
        """The numbers of those of the first ``count`` images that do not exist yet."""
        return [index for index in range(count) if not self.image(index).is_file()]

    def claim(self, provenance: Provenance) -> None:
        """Reserve the folder for samples of one provenance, and record it in ``settings.json``.

        Raises:
            SpecError: the folder holds samples of another provenance.
            SourceError: its settings cannot be read.
            ArtifactError: it cannot be written.
        """
        stored = self._read()
        if stored is None:
            if any((self.path / IMAGES).glob("*.png")):
                raise SpecError(f"{self.path / IMAGES}: holds images already; give another folder")
            with replacing(self.path / SETTINGS) as partial:
                partial.write_text(json.dumps(provenance.to_json(), indent=2) + "\n", "utf-8")
            (self.path / IMAGES).mkdir(exist_ok=True)
            return
        difference = _difference(stored, json.loads(json.dumps(provenance.to_json())))
        if difference:
            raise SpecError(
                f"{self.path}: holds samples of other settings ({difference}); give another "
                "folder, or delete this one"
            )

    def check_same_settings(self, other: Provenance) -> None:
        """Refuse samples that cannot be compared image by image with those of another model.

        Raises:
            SpecError: they were drawn by other settings, seeds or conditions.
            SourceError: there are no samples here, or their settings cannot be read.
        """
        stored = self._read()
        if stored is None:
            raise SourceError(f"{self.path}: holds no {SETTINGS} of `dpq sample`")
        ignored = {"source", "model"}
        values = json.loads(json.dumps(other.to_json()))
        difference = _difference(
            {k: v for k, v in stored.items() if k not in ignored},
            {k: v for k, v in values.items() if k not in ignored},
        )
        if difference:
            raise SpecError(f"{self.path}: those samples were drawn otherwise ({difference})")

    @property
    def source(self) -> str:
        """The source of the model that drew the samples, as the user named it."""
        return str((self._read() or {}).get("source", self.path.name))

    def images(self, count: int) -> Images:
        """The first ``count`` images.

        Raises:
            SourceError: some are missing.
        """
        missing = self.missing(count)
        if missing:
            raise SourceError(f"{self.image(missing[0])}: missing, with {len(missing)} in all")
        return FirstImages(PngFolder(self.path / IMAGES), count)

    def _read(self) -> dict[str, Any] | None:
        path = self.path / SETTINGS
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise SourceError(f"{path}: not readable ({reason})") from None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise SourceError(f"{path}: not the settings of dpq samples (format {FORMAT!r})")
        return values


def draw_missing(
    folder: SampleFolder, sampler: Sampler, provenance: Provenance, count: int, size: int, run: Run
) -> None:
    """Draw those of the first ``count`` images that a folder lacks, ``size`` at a time.

    Batches are cut as if nothing was there, so that a continued run gives the same bytes as an
    uninterrupted one (a batch of another size can round differently).

    Raises:
        SpecError: the folder holds samples of other settings.
        SourceError: the model gives NaN.
        ArtifactError: a file cannot be written.
    """
    folder.claim(provenance)
    items, missing = provenance.items(count), set(folder.missing(count))
    done = count - len(missing)
    run.progress("drawing images", done, count)
    for first in range(0, count, size):
        batch = items[first : first + size]
        absent = [item for item in batch if item.index in missing]
        if not absent:
            continue
        images = sampler.draw(batch)
        for item, image in zip(batch, images, strict=True):
            if item.index in missing:
                _write_png(folder.image(item.index), image, item)
        done += len(absent)
        run.progress("drawing images", done, count)


class FirstImages:
    """A set of images cut off after the first ``count``."""

    def __init__(self, images: Images, count: int) -> None:
        self._images = images
        self._count = min(count, len(images))
        self.name = images.name
        self.size = images.size

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[Tensor]:
        """Uint8 ``[n, height, width, 3]`` with ``n <= size``, in order."""
        left = self._count
        for batch in self._images.batches(size):
            yield batch[:left]
            left -= len(batch)
            if left <= 0:
                return


def _write_png(path: Path, image: Tensor, item: Item) -> None:
    """Write a uint8 image ``[H, W, C]`` with its seed and condition in the metadata."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_text("seed", str(item.seed))
    if item.condition.label is not None:
        about.add_text("class", str(item.condition.label))
    if item.condition.name:
        about.add_itxt("name", item.condition.name)
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    with replacing(path) as partial:
        Image.fromarray(pixels.numpy()).save(partial, format="PNG", pnginfo=about)


def _difference(stored: dict[str, Any], required: dict[str, Any]) -> str:
    """A text that names the first setting that differs; empty where none does."""
    stored, required = _flat(stored), _flat(required)
    for key in sorted(stored.keys() | required.keys()):
        if stored.get(key) != required.get(key):
            name = key.removeprefix("settings.")
            return f"{name}: {_short(stored.get(key))}, not {_short(required.get(key))}"
    return ""


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat = {k: v for k, v in values.items() if k != "settings"}
    inner = values.get("settings")
    return flat | {f"settings.{k}": v for k, v in (inner or {}).items()}


def _short(value: Any) -> str:
    if isinstance(value, list):
        names: Sequence[Any] = [v.get("name", v) if isinstance(v, dict) else v for v in value]
        value = ", ".join(map(str, names))
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
