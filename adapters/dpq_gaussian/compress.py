"""Compression of a scene into one ``.dpq`` file: importance, coding, errors, manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dpq_core.artifact.manifest import library_versions
from dpq_core.artifact.single_manifest import Attribute, FileManifest
from dpq_core.artifact.single_writer import Packed
from dpq_core.run import Run
from dpq_gaussian.cameras import Camera, read_cameras
from dpq_gaussian.codec import Encoded, encode
from dpq_gaussian.codec.distortion import measure
from dpq_gaussian.codec.layout import CHUNK
from dpq_gaussian.codec.parameters import Marks, parameters_to_json
from dpq_gaussian.loading import load
from dpq_gaussian.options import CompressOptions
from dpq_gaussian.policy import Policy
from dpq_gaussian.rendering import RenderOptions
from dpq_gaussian.rendering.importance import importance
from dpq_gaussian.scene import Scene, check_values, visible


@dataclass(frozen=True, kw_only=True)
class PreparedScene:
    """A scene that is read, checked and weighted by importance, ready to be coded.

    Attributes:
        source: where it is from.
        scene: all of it.
        kept: indices of the Gaussians to code, ascending; None for all.
        seen: importance ``[N]``.
        cameras: poses that the user gave.
        marks: what its file says of it.
        notes: for the user.
    """

    source: str
    scene: Scene
    kept: npt.NDArray[np.int64] | None
    seen: npt.NDArray[np.float32]
    cameras: Sequence[Camera]
    marks: Marks
    notes: tuple[str, ...]

    @property
    def antialiased(self) -> bool:
        """Whether the scene was trained for anti-aliased rendering."""
        return self.marks.antialiased

    @property
    def count(self) -> int:
        """Number of Gaussians to code."""
        return len(self.scene) if self.kept is None else len(self.kept)


def pack(source: str, options: CompressOptions, run: Run) -> Packed:
    """Codes a scene with the steps that the options ask for.

    Raises:
        SourceError: it cannot be read, or has values that cannot be coded.
    """
    prepared = prepare(source, options, run)
    policy = options.policy()

    def tick(what: str, share: float) -> None:
        run.progress(what, 40 + 50 * share, 100)

    encoded = encode_prepared(prepared, policy, tick)
    run.progress("measure", 90, 100)
    packed = to_packed(prepared, policy, encoded, measure(prepared.scene, encoded))
    run.progress("done", 100, 100)
    return packed


def prepare(source: str, options: CompressOptions, run: Run) -> PreparedScene:
    """Reads and checks a scene, and computes the importance of its Gaussians.

    Raises:
        SourceError: it cannot be read, or has values that cannot be coded.
    """
    run.progress("read", 0, 100)
    loaded = load(source)
    scene, notes = loaded.scene, list(loaded.notes)
    check_values(scene, source)
    cameras = read_cameras(options.cameras, origin=loaded.origin) if options.cameras else ()
    kept = visible(scene)
    if kept is not None:
        notes.append(
            f"{len(scene) - len(kept)} of {len(scene)} Gaussians are never drawn (opacity below "
            "1/255): left out"
        )
    options_of = RenderOptions(antialiased=loaded.antialiased)
    seen = importance(
        scene, cameras, options_of, lambda share: run.progress("look", 5 + 35 * share, 100)
    )
    return PreparedScene(
        source=source,
        scene=scene,
        kept=kept,
        seen=seen,
        cameras=cameras,
        marks=Marks(antialiased=loaded.antialiased, flat=loaded.flat, origin=loaded.origin),
        notes=tuple(notes),
    )


def encode_prepared(
    prepared: PreparedScene,
    policy: Policy,
    tick: Callable[[str, float], None] = lambda what, share: None,
) -> Encoded:
    """Codes a prepared scene with the steps of a policy."""
    return encode(
        prepared.scene,
        prepared.seen,
        policy,
        kept=prepared.kept,
        marks=prepared.marks,
        tick=tick,
    )


def to_packed(
    prepared: PreparedScene,
    policy: Policy,
    encoded: Encoded,
    errors: Mapping[str, Mapping[str, float]],
) -> Packed:
    """Joins streams and manifest to what the engine writes as one file.

    Args:
        prepared: the scene.
        policy: its steps.
        encoded: the scene, coded with them.
        errors: as ``codec.errors.measure`` tells them.
    """
    scene = prepared.scene
    manifest = FileManifest(
        adapter="gaussian",
        source=prepared.source,
        fingerprint=_fingerprint(scene, policy),
        items=prepared.count,
        source_items=len(scene),
        chunk_items=CHUNK,
        attributes=_attributes(encoded, policy, errors),
        parameters=parameters_to_json(encoded.parameters),
        streams={},
        versions=library_versions(),
    )
    return Packed(
        manifest=manifest,
        whole=encoded.whole,
        chunked=encoded.chunked,
        source_nbytes=scene.nbytes,
        notes=prepared.notes,
    )


def _attributes(
    encoded: Encoded, policy: Policy, errors: Mapping[str, Mapping[str, float]]
) -> tuple[Attribute, ...]:
    m = encoded.parameters.coefficients
    shapes: dict[str, tuple[int, ...]] = {"positions": (3,), "scales": (3,), "rotations": (4,)}
    shapes |= {"opacity": (), "color": (3,)} | ({"harmonics": (m, 3)} if m else {})
    attributes = [Attribute(name="importance", shape=(), streams=("importance",))]
    for name, shape in shapes.items():
        streams: tuple[str, ...] = (name,)
        if name == "positions":
            outliers = ("outliers",) if len(encoded.outliers) else ()
            streams = ("positions", "paths", *outliers)
        spec: dict[str, Any] = {
            "steps": [float(f"{step:.4g}") for step in policy.steps(name)],
        }
        if name == "harmonics" and encoded.parameters.harmonic_spec is not None:
            spec = encoded.parameters.harmonic_spec.to_json()
        attributes.append(
            Attribute(
                name=name,
                shape=shape,
                streams=streams,
                spec=spec,
                errors=errors[name],
            )
        )
    return tuple(attributes)


def _fingerprint(scene: Scene, policy: Policy) -> str:
    """Hash of what decides the bytes: the scene's values and the policy."""
    digest = hashlib.sha256(repr(policy).encode())
    if policy.harmonic_spec is not None:
        digest.update(json.dumps(policy.harmonic_spec.to_json()).encode())
    for name, array in scene.arrays().items():
        digest.update(json.dumps([name, array.shape]).encode())
        for first in range(0, len(array), CHUNK):
            digest.update(np.ascontiguousarray(array[first : first + CHUNK]).tobytes())
    return digest.hexdigest()
