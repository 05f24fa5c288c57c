"""Loading of a source, compressed or not, as a diffusers pipeline that is ready to sample."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from logging import LogRecord
from pathlib import Path
from typing import Any

import torch

from dpq_core.artifact import Artifact
from dpq_core.device import resolve
from dpq_core.errors import SourceError
from dpq_core.run import Run
from dpq_diffusion.folders import CONFIG
from dpq_diffusion.source.locate import locate
from dpq_hf.sources import PIPELINE_INDEX, is_pipeline, read_json


def load_pipeline(source: str, run: Run) -> Any:
    """The pipeline of an artifact or of an uncompressed source, on the device of ``run``.

    A source that is a single component gives that model.

    Raises:
        SourceError: there is no such source, or diffusers cannot load it.
        ArtifactError: the artifact is damaged.
    """
    device = resolve(run.device)
    folder = locate(source)
    if Artifact.is_artifact(folder):
        Artifact.open(folder, adapter="diffusion")
    return load_folder(folder, device)


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Load a folder with ``from_pretrained``: a pipeline, or the model of a single component.

    Args:
        folder: folder of a pipeline or of a component.
        device: to load it to.
        dtype: dtype of activations and dense weights; None: float32 on the CPU, and that of
            the stored weights elsewhere.

    Raises:
        SourceError: diffusers cannot load it.
    """
    import diffusers

    kind: Any = diffusers.DiffusionPipeline
    if not is_pipeline(folder):
        kind = getattr(diffusers, _class_name(folder), None)
        if kind is None:
            raise SourceError(
                f"{folder / CONFIG}: diffusers has no class {_class_name(folder)!r}; load it with "
                "the from_pretrained of its own library, after `import dpq_diffusion`"
            )
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else stored_dtype(folder)
    try:
        with _muted_libraries():
            loaded = kind.from_pretrained(
                folder, dtype=dtype, local_files_only=True, **_absent_components(folder)
            )
    except (OSError, ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SourceError(f"{folder}: diffusers cannot load it ({reason})") from None
    _restore_labels(loaded, folder)
    return loaded.to(device)


def is_loadable(folder: Path) -> bool:
    """Whether diffusers has the class of the pipeline or component, dpq's own ones included."""
    import diffusers
    import diffusers.pipelines.pipeline_utils  # enters dpq's own, see registration.py

    return hasattr(diffusers, _class_name(folder))


def _class_name(folder: Path) -> str:
    return str(
        read_json(folder / (PIPELINE_INDEX if is_pipeline(folder) else CONFIG)).get("_class_name")
    )


def _absent_components(folder: Path) -> dict[str, None]:
    """None for each component that a pipeline's index leaves empty, as some classes require."""
    index = read_json(folder / PIPELINE_INDEX) if is_pipeline(folder) else {}
    return {name: None for name, value in index.items() if value == [None, None]}


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype in which the denoiser's dense weights are stored."""
    from dpq_diffusion.folders import component, components_of
    from dpq_diffusion.source.checkpoint import DENOISERS

    place = folder
    if is_pipeline(folder):
        present = components_of(folder)
        place = folder / next((name for name in DENOISERS if name in present), present[0])
    from dpq_core.tensor.checkpoint import SafetensorsCheckpoint
    from dpq_core.tensor.pq_tensor import PARTS

    for name, info in SafetensorsCheckpoint(
        str(place), list(component(place).files)
    ).tensors.items():
        if info.dtype.is_floating_point and name.rpartition(".")[2] not in PARTS:
            return info.dtype
    return torch.float16


def _restore_labels(pipeline: Any, folder: Path) -> None:
    """Set the class names of the pipeline's index, which diffusers does not keep."""
    if not is_pipeline(folder):
        return
    labels = read_json(folder / PIPELINE_INDEX).get("id2label")
    if not isinstance(labels, dict) or pipeline.config.get("id2label"):
        return
    if "id2label" in inspect.signature(type(pipeline).__init__).parameters:
        pipeline.register_to_config(id2label=labels)
    else:
        pipeline.id2label = labels  # an unknown entry of the config would break the pipeline


_LOGGERS = ("configuration_utils", "pipelines.pipeline_utils")


def _is_worth_showing(record: LogRecord) -> bool:
    """Whether a log record is no false alarm about class names or an LDM's ``AutoencoderKL``."""
    text = record.getMessage()
    return "'id2label'" not in text and not text.startswith("Expected types for vqvae")


@contextmanager
def _muted_libraries() -> Iterator[None]:
    """A context without the libraries' progress bars, and without their false alarms.

    dpq reports progress through ``Run``. Other warnings, such as of missing weights, stay.
    """
    from diffusers.utils import logging
    from transformers.utils import logging as text_logging

    shown = text_logging.is_progress_bar_enabled()
    loggers = [logging.get_logger(f"diffusers.{name}") for name in _LOGGERS]
    logging.disable_progress_bar()
    text_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for logger in loggers:
        logger.addFilter(_is_worth_showing)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_worth_showing)
        logging.enable_progress_bar()
        if shown:
            text_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
