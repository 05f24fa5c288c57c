"""A writer of .sog as good as PlayCanvas', but for the time that its k-means takes on a CPU.

splat-transform clusters harmonics with a palette of up to 65,536 entries; on a CPU it does not
finish a scene of 100,000 Gaussians in ten minutes. This one takes any palette, rounds where that
tool truncates (which is better by up to 7 dB) and writes lossless WebP, so that a rival is not
measured below its worth. `validate` in suites/gaussian.py compares the two on a small scene.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dpq_gaussian.formats.sog import FIRST_TAG, PER_ROW
from dpq_gaussian.scene import Scene
from dpq_gaussian.scene.morton import morton_order

ITERATIONS = 10
"""Of k-means: splat-transform's default."""

_LEVELS = 256


def cluster(vectors: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres float32 ``[k, d]`` and labels ``[n]`` by plain k-means on all vectors."""
    import faiss

    vectors = np.ascontiguousarray(vectors, np.float32)
    k = min(k, len(vectors))
    means = faiss.Kmeans(
        vectors.shape[1],
        k,
        niter=ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=1 << 30,
    )
    means.train(vectors)
    _, labels = means.index.search(vectors, 1)
    return means.centroids, labels[:, 0]


def upstream_palette(n: int) -> int:
    """Entries that splat-transform gives a scene of n Gaussians."""
    return min(64, 1 << max(0, int(np.log2(n / 1024)))) * 1024


def write_sog(scene: Scene, path: Path, palette: int, seed: int = 0) -> None:
    """Write version 2 with a palette of so many harmonics."""
    places = scene.positions.astype(np.float64)
    low = places.min(0)
    grid = (places - low) / (places.max(0) - low).max() * (2.0**32 - 1)
    scene = scene.take(morton_order(grid.astype(np.uint32)))
    files: dict[str, bytes] = {}
    meta: dict[str, Any] = {"version": 2, "count": len(scene)}
    logs = np.sign(scene.positions) * np.log1p(np.abs(scene.positions.astype(np.float64)))
    low, high = logs.min(0), logs.max(0)
    words = np.rint((logs - low) / np.where(high > low, high - low, 1) * 65535).astype(np.uint16)
    files["means_l.webp"] = _plane(words & 255)
    files["means_u.webp"] = _plane(words >> 8)
    meta["means"] = {
        "mins": low.tolist(),
        "maxs": high.tolist(),
        "files": ["means_l.webp", "means_u.webp"],
    }
    files["quats.webp"] = _plane(_quaternions(scene.rotations))
    meta["quats"] = {"files": ["quats.webp"]}
    book, levels = _codebook(scene.log_scales)
    files["scales.webp"] = _plane(levels)
    meta["scales"] = {"codebook": book.tolist(), "files": ["scales.webp"]}
    book, levels = _codebook(scene.sh_dc)
    alpha = np.rint(255 / (1 + np.exp(-scene.opacity_logits.astype(np.float64)))).astype(np.uint8)
    files["sh0.webp"] = _plane(np.concatenate([levels, alpha[:, None]], axis=1))
    meta["sh0"] = {"codebook": book.tolist(), "files": ["sh0.webp"]}
    if scene.sh_degree:
        meta["shN"] = _palette(scene, palette, seed, files)
    files["meta.json"] = json.dumps(meta, separators=(",", ":")).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def _palette(scene: Scene, size: int, seed: int, files: dict[str, bytes]) -> dict[str, Any]:
    m = scene.sh_rest.shape[1]
    centres, labels = cluster(scene.sh_rest.reshape(len(scene), -1), size, seed)
    book, levels = _codebook(centres)
    rows = -(-len(centres) // PER_ROW)
    texels = np.zeros((rows * PER_ROW, m, 3), np.uint8)
    texels[: len(centres)] = levels.reshape(-1, m, 3)
    files["shN_centroids.webp"] = _webp(texels.reshape(rows, PER_ROW * m, 3))
    halves = np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], axis=1)
    files["shN_labels.webp"] = _plane(halves.astype(np.uint8))
    return {
        "count": len(centres),
        "bands": scene.sh_degree,
        "codebook": book.tolist(),
        "files": ["shN_centroids.webp", "shN_labels.webp"],
    }


def _quaternions(rotations: np.ndarray) -> np.ndarray:
    """uint8 ``[n, 4]``: three components in 8 bits each, and which one is left out."""
    q = rotations / np.linalg.norm(rotations, axis=1, keepdims=True)
    largest = np.abs(q).argmax(1)
    q = q * np.where(np.take_along_axis(q, largest[:, None], 1) < 0, -1, 1)
    rest = q[np.arange(4) != largest[:, None]].reshape(-1, 3)
    levels = np.rint((rest * np.sqrt(2) * 0.5 + 0.5) * 255).clip(0, 255)
    return np.concatenate([levels, FIRST_TAG + largest[:, None]], axis=1).astype(np.uint8)


def _codebook(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """256 numbers by Lloyd's algorithm, and the nearest of them for each value (uint8)."""
    ordered = np.sort(values.ravel().astype(np.float64))
    book = np.linspace(ordered[0], ordered[-1], _LEVELS)  # as upstream: the tails matter most
    sums = np.concatenate([[0], np.cumsum(ordered)])
    for _ in range(ITERATIONS):
        ends = np.searchsorted(ordered, (book[1:] + book[:-1]) / 2)
        ends = np.concatenate([[0], ends, [len(ordered)]])
        counts = np.diff(ends)
        means = np.diff(sums[ends]) / np.maximum(counts, 1)
        book = np.sort(np.where(counts > 0, means, book))
    levels = np.searchsorted((book[1:] + book[:-1]) / 2, values)
    return book, levels.astype(np.uint8)


def _plane(levels: np.ndarray) -> bytes:
    """Rows of 3 or 4 levels as a picture about as wide as high."""
    width = 4 * int(np.ceil(np.sqrt(len(levels)) / 4))
    height = -(-len(levels) // width)
    texels = np.zeros((width * height, levels.shape[1]), np.uint8)
    texels[: len(levels)] = levels
    return _webp(texels.reshape(height, width, -1))


def _webp(texels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(texels).save(file, "WEBP", lossless=True, exact=True, quality=100, method=4)
    return file.getvalue()
