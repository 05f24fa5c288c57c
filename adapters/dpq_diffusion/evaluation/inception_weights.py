"""The Inception weights, downloaded or from a file, and the extractor that uses them.

The published file is a pickle. It is accepted only with the hash below, read once with
``weights_only=True`` and kept as safetensors beside it, in the cache of torch.hub, where other FID
tools leave the same download.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import pickle
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dpq_core.artifact.files import replacing
from dpq_core.errors import SourceError
from dpq_core.run import Progress, silent
from dpq_diffusion.evaluation.extractor import ADM_EXTRACTOR, Features
from dpq_diffusion.evaluation.inception import InceptionV3

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
BYTES = 95_628_359
DOWNLOAD = "download"
"""The word that asks for the download instead of naming a path."""

_OTHER_FILE = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's name for the same
_ORIGIN = "source_sha256"
_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without any data


class InceptionExtractor:
    """An extractor of the ADM evaluator's features, from an Inception network.

    Args:
        network: the network with its weights loaded.
        name: ``ADM_EXTRACTOR`` for the published weights and nothing else.
        device: where it runs.
    """

    def __init__(self, network: InceptionV3, *, name: str, device: torch.device | str) -> None:
        self.name = name
        self._device = torch.device(device)
        self._network = network.eval().requires_grad_(False).to(self._device)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Features:
        """Features of uint8 images ``[N, H, W, 3]``: 2048 pooled, 2023 spatial, 1008 logits."""
        with _exact_convolutions(self._device):
            features: Features = self._network(images.to(self._device))
        return features


def load_inception(
    weights: str = "",
    *,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
    progress: Progress = silent,
) -> InceptionExtractor:
    """The extractor of FID, sFID and IS.

    Args:
        weights: path of the published ``.pth`` or of its conversion; ``download``; or empty for
            what an earlier call has left in the cache.
        device: where it runs.
        cache: folder of downloads and conversions; default: that of torch.hub.
        progress: counts downloaded bytes.

    Raises:
        SourceError: no weights, other weights, or a damaged file.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints" if cache is None else cache
    state = _read(_converted(weights, cache, progress))
    with torch.device("meta"):
        network = InceptionV3()
    network.load_state_dict(state, assign=True)
    return InceptionExtractor(network, name=ADM_EXTRACTOR, device=device)


def convert(source: Path, target: Path) -> None:
    """Turn the published pickle into safetensors.

    Raises:
        SourceError: another file than the published one.
        ArtifactError: the target cannot be written.
    """
    digest = _hash(source)
    if digest != SHA256:
        raise SourceError(
            f"{source}: sha256 {digest[:16]}... is not that of {FILE} ({SHA256[:16]}...); "
            f"get it from {URL}"
        )
    try:
        state = torch.load(  # noqa: TID251 - published as a pickle only; checked by hash above
            source, map_location="cpu", weights_only=True
        )
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise SourceError(f"{source}: not a plain state dict ({_line(error)})") from None
    tensors = _checked(state, str(source))
    with replacing(target) as partial:
        partial.write_bytes(save(tensors, {_ORIGIN: digest}))


def _converted(weights: str, cache: Path, progress: Progress) -> Path:
    """The safetensors file to load; it is converted first where necessary."""
    target = (cache / FILE).with_suffix(".safetensors")
    if weights not in ("", DOWNLOAD):
        source = Path(weights).expanduser()
        if not source.is_file():
            raise SourceError(f"{source}: no such file of Inception weights; {_how_to_get()}")
        if source.suffix == ".safetensors":
            return source
        if not target.exists():
            convert(source, target)
        elif _hash(source) != SHA256:
            convert(source, target)  # says what is wrong
        return target
    if target.exists():
        return target
    source = next((cache / n for n in (FILE, _OTHER_FILE) if (cache / n).exists()), cache / FILE)
    if not source.exists():
        if weights != DOWNLOAD:
            raise SourceError(f"FID, sFID and IS need Inception weights; {_how_to_get()}")
        _download(source, progress)
    convert(source, target)
    return target


def _how_to_get() -> str:
    return f"give the path of {FILE} (from {URL}), or the word {DOWNLOAD!r} (96 MB, once)"


def _checked(state: object, where: str) -> dict[str, Tensor]:
    """The network's tensors in float32, after a check of every name and shape.

    Raises:
        SourceError: something is missing, left over, or shaped otherwise.
    """
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise SourceError(f"{where}: not a plain state dict of tensors")
    tensors = {k: v for k, v in state.items() if not str(k).endswith("num_batches_tracked")}
    expected = _shapes()
    wrong = sorted(expected.keys() ^ tensors.keys(), key=str) or [
        name for name, shape in expected.items() if tuple(tensors[name].shape) != shape
    ]
    if wrong:
        raise SourceError(
            f"{where}: not the Inception weights of {FILE}: {wrong[0]!r} is missing, unknown or "
            f"of another shape (one of {len(wrong)})"
        )
    return {name: tensors[name].float().contiguous() for name in expected}


def _shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of the network's tensors, without the counters of batch norm."""
    with torch.device("meta"):
        state = InceptionV3().state_dict()
    return {
        name: tuple(value.shape)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a converted file.

    Raises:
        SourceError: damaged, or not converted from the published weights.
    """
    try:
        with safe_open(path, framework="pt") as file:
            origin = (file.metadata() or {}).get(_ORIGIN)
            if origin != SHA256:
                raise SourceError(
                    f"{path}: not converted from {FILE}; delete it, and {_how_to_get()}"
                )
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path}: not readable ({_line(error)}); delete it") from None
    return _checked(state, str(path))


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None


def _download(target: Path, progress: Progress) -> None:
    """Download the published file, which appears only when length and hash are right."""
    digest, done = hashlib.sha256(), 0
    with replacing(target) as partial, partial.open("wb") as file:
        for block in _blocks():
            file.write(block)
            digest.update(block)
            done += len(block)
            progress("Inception weights", min(done, BYTES), BYTES)
        if digest.hexdigest() != SHA256:
            raise SourceError(f"{URL}: {done:,} bytes with another hash; nothing was kept")


def _blocks() -> Iterator[bytes]:
    """The blocks of bytes that the URL sends, at most one more than the published file has."""
    try:
        with urllib.request.urlopen(URL, timeout=_TIMEOUT) as answer:
            done = 0
            while done <= BYTES and (block := answer.read(_BLOCK)):
                done += len(block)
                yield block
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise SourceError(f"{URL}: download failed ({_line(error)}); {_how_to_get()}") from None


def _line(error: BaseException) -> str:
    return json.dumps(str(error))[1:-1].split("\\n")[0][:200] or type(error).__name__


@contextlib.contextmanager
def _exact_convolutions(device: torch.device) -> Iterator[None]:
    """A context in which a GPU convolves in float32; TF32 would change FID's third digit."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before
