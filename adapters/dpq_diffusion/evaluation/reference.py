"""References of samples: images, stored statistics of images, or both.

Three kinds of files: an ADM ``.npz`` (``arr_0`` images and ``mu, sigma, mu_s, sigma_s`` of the ADM
extractor, each optional), a folder of PNG files, and our own ``.safetensors``, which names its
extractor and may hold features for precision and recall instead of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dpq_core.artifact.files import replacing
from dpq_core.errors import DPQError, SourceError, SpecError
from dpq_diffusion.evaluation.extractor import ADM_EXTRACTOR
from dpq_diffusion.evaluation.frechet import Gaussian
from dpq_diffusion.sampling import npz
from dpq_diffusion.sampling.images import ARRAY, Images, NpzImages, PngFolder

MAX_DIMENSIONS = 8192
"""Largest number of dimensions of a covariance that is read: 512 MB in float64."""

MAX_FEATURE_BYTES = 1 << 31
FORMAT = "dpq-reference-1"

_POOL, _SPATIAL, _FEATURES = ("mu", "sigma"), ("mu_s", "sigma_s"), "features"
_FLOATS = (torch.float64, torch.float32, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of the features that one extractor gives for a set of images.

    Attributes:
        extractor: name of the extractor; features of another one are not comparable.
        pool: Gaussian of the pooled features.
        spatial: Gaussian of the spatial features, where the extractor has them.
        features: pooled features float32 ``[N, D]`` of some of the images, for precision and
            recall.
    """

    extractor: str
    pool: Gaussian
    spatial: Gaussian | None = None
    features: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The reference of samples: images, statistics, or both."""

    name: str
    images: Images | None = None
    statistics: Statistics | None = None


def read_reference(path: Path) -> Reference:
    """Open a reference; statistics are read, images stay on disk.

    Raises:
        SourceError: missing, of another kind, unreadable, or with impossible values.
    """
    if path.is_dir():
        return Reference(name=path.name, images=PngFolder(path))
    if not path.exists():
        raise SourceError(f"{path}: no such reference")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".safetensors":
        return Reference(name=path.name, statistics=_read_safetensors(path))
    raise SourceError(f"{path}: a reference is an ADM .npz, a .safetensors or a folder of .png")


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Store statistics as ``.safetensors``, or as the ADM ``.npz`` where the extractor is ADM's.

    Raises:
        SpecError: another suffix, or an ``.npz`` for another extractor.
        ArtifactError: the file cannot be written.
    """
    tensors = {"mu": statistics.pool.mean, "sigma": statistics.pool.covariance}
    if statistics.spatial is not None:
        tensors |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    if path.suffix == ".npz":
        if statistics.extractor != ADM_EXTRACTOR or statistics.features is not None:
            raise SpecError(
                f"{path}: an .npz names no extractor and holds no features; write .safetensors"
            )
        npz.write_arrays(path, {name: tensor.numpy() for name, tensor in tensors.items()})
    elif path.suffix == ".safetensors":
        if statistics.features is not None:
            tensors[_FEATURES] = statistics.features.float()
        metadata = {"format": FORMAT, "extractor": statistics.extractor}
        if statistics.pool.count is not None:
            metadata["count"] = str(statistics.pool.count)
        with replacing(path) as partial:
            partial.write_bytes(save({k: v.contiguous() for k, v in tensors.items()}, metadata))
    else:
        raise SpecError(f"{path}: statistics are written as .safetensors or .npz")


def _read_npz(path: Path) -> Reference:
    headers = npz.read_headers(path)
    images = NpzImages(path) if ARRAY in headers else None

    def read(name: str) -> Tensor:
        header = headers[name]
        if header.dtype.newbyteorder("=") not in (np.float64, np.float32):
            raise SourceError(f"{path}: {name!r} is {header.dtype}; expected floating point")
        array = npz.read_array(path, name, 8 * MAX_DIMENSIONS**2)
        return torch.from_numpy(array.astype(np.float64))

    shapes = {name: header.shape for name, header in headers.items()}
    pool = _gaussian(path, _POOL, shapes, read)
    spatial = _gaussian(path, _SPATIAL, shapes, read)
    if pool is None:
        if images is None or spatial is not None:
            raise SourceError(f"{path}: holds neither images ({ARRAY!r}) nor 'mu' and 'sigma'")
        return Reference(name=path.name, images=images)
    statistics = Statistics(extractor=ADM_EXTRACTOR, pool=pool, spatial=spatial)
    return Reference(name=path.name, images=images, statistics=statistics)


def _gaussian(
    path: Path,
    keys: tuple[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    count: int | None = None,
) -> Gaussian | None:
    """The Gaussian stored under two names; None where both are absent."""
    present = [key for key in keys if key in shapes]
    if not present:
        return None
    if len(present) == 1:
        raise SourceError(
            f"{path}: holds {present[0]!r} but not the whole pair ({' and '.join(keys)})"
        )
    d = shapes[keys[0]][0] if len(shapes[keys[0]]) == 1 else 0
    if not 0 < d <= MAX_DIMENSIONS or shapes[keys[1]] != (d, d):
        raise SourceError(
            f"{path}: {keys[0]!r} and {keys[1]!r} have shapes {list(shapes[keys[0]])} and "
            f"{list(shapes[keys[1]])}; expected [D] and [D, D] with D at most {MAX_DIMENSIONS:,}"
        )
    try:
        return Gaussian(read(keys[0]).double(), _covariance(read(keys[1]).double()), count)
    except SourceError:
        raise
    except DPQError as error:
        raise SourceError(f"{path}: {keys[0]!r}, {keys[1]!r}: {error}") from None


def _covariance(matrix: Tensor) -> Tensor:
    """The matrix, checked to be a covariance: symmetric up to rounding, no negative variance."""
    slack = 1e-5 * matrix.abs().max()
    if (matrix - matrix.T).abs().max() > slack or matrix.diagonal().min() < 0:
        raise SpecError("not a covariance: it is not symmetric, or has a negative variance")
    return matrix


def _read_safetensors(path: Path) -> Statistics:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
            extractor, count = _identity(path, metadata, set(shapes))

            def read(name: str) -> Tensor:
                tensor: Tensor = file.get_tensor(name)
                if tensor.dtype not in _FLOATS:
                    raise SourceError(f"{path}: {name!r} is {tensor.dtype}; expected floats")
                return tensor

            pool = _gaussian(path, _POOL, shapes, read, count)
            if pool is None:
                raise SourceError(f"{path}: holds no 'mu' and 'sigma'")
            spatial = _gaussian(path, _SPATIAL, shapes, read, count)
            features = _features(path, shapes, len(pool.mean), read)
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path}: not a readable safetensors file ({error})") from None
    return Statistics(extractor=extractor, pool=pool, spatial=spatial, features=features)


def _identity(path: Path, metadata: Mapping[str, str], names: set[str]) -> tuple[str, int | None]:
    """The extractor and image count in the metadata; refuses unknown content."""
    if metadata.get("format") != FORMAT or not metadata.get("extractor"):
        raise SourceError(f"{path}: not reference statistics (format {FORMAT!r} with an extractor)")
    unknown = names - {*_POOL, *_SPATIAL, _FEATURES}
    count = metadata.get("count")
    if unknown or (count is not None and not (count.isascii() and count.isdigit())):
        raise SourceError(f"{path}: unknown content {sorted(unknown) or count!r}")
    return metadata["extractor"], None if count is None else int(count)


def _features(
    path: Path, shapes: Mapping[str, tuple[int, ...]], d: int, read: Callable[[str], Tensor]
) -> Tensor | None:
    if _FEATURES not in shapes:
        return None
    shape = shapes[_FEATURES]
    if len(shape) != 2 or shape[1] != d or 4 * shape[0] * d > MAX_FEATURE_BYTES:
        raise SourceError(f"{path}: 'features' has shape {list(shape)}; expected [N, {d}]")
    features = read(_FEATURES).float()
    if not features.isfinite().all():
        raise SourceError(f"{path}: 'features' holds NaN or infinity")
    return features
