"""Calibration of one splat scene: the task that the engine's loop trains."""

from __future__ import annotations

import dataclasses
import hashlib
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpq_core.artifact.manifest import library_versions
from dpq_core.artifact.single import INDEX
from dpq_core.artifact.single_manifest import FileManifest
from dpq_core.artifact.single_writer import Packed, size_of
from dpq_core.data.task import Batch, CalibrationTask, EStep
from dpq_core.run import Run
from dpq_gaussian.calibration import latents
from dpq_gaussian.calibration.harmonics import CodeHarmonics
from dpq_gaussian.calibration.rate_control import RateControl
from dpq_gaussian.calibration.student import RoundedState, SceneStudent
from dpq_gaussian.calibration.views import TrainingViews, training_views
from dpq_gaussian.codec import SceneFile
from dpq_gaussian.codec.distortion import LONGEST, measure
from dpq_gaussian.codec.encoding import Encoded
from dpq_gaussian.codec.parameters import parameters_to_json
from dpq_gaussian.loading import load
from dpq_gaussian.options import CalibrateOptions
from dpq_gaussian.policy import POWER
from dpq_gaussian.rendering import Splats, drawing_device, render
from dpq_gaussian.scene import Scene, check_values

RATE = 60.0
"""Learning rate of latents, in steps, relative to the loop's: 0.006 by default. Where it is much
higher the loss stays on a plateau, set by noise, until the schedule lowers it."""

CODES_RATE = 30.0
"""The same for files whose harmonics are codes: they begin with their own symbols."""

BETAS = (0.95, 0.99)
"""AdamW's: most Gaussians are in one view and not in the next, so gradients are averaged over more
steps than the loop does. Runs are a few epochs, so magnitudes are averaged over fewer."""

EPS = 1e-15
"""AdamW's, as in Kerbl et al. 2023: what one Gaussian does to a mean over pixels is little, and so
is the price of its bits."""

_LONG = 1000
"""Steps of training from which on all of ``--finer`` pays; a shorter one has a part of it."""

_OVER = 100.0
"""Loss per share of bytes beyond what is allowed: such a state is never the best one."""

_THRIFT = tuple(1e-5 * 2.0**k for k in range(17))
"""How much rounding is for cheaper symbols, the least that does is chosen: see ``fitted``. The
first are tiny, because latents gather where they are about to round to the next level."""


class SceneTask(CalibrationTask):
    """A compressed scene, its original and the views to train on."""

    def __init__(
        self,
        file: SceneFile,
        stored: latents.StoredScene,
        original: Scene,
        views: TrainingViews,
        options: CalibrateOptions,
        seed: int = 0,
    ) -> None:
        """Create the trainable scene.

        Args:
            file: that is calibrated.
            stored: what is in it.
            original: the uncompressed scene, as it came.
            views: that it is trained and validated with.
            options: the user's options.
            seed: seed of the order of views.
        """
        self._file, self._stored, self._original, self._views = file, stored, original, views
        self._options, self._seed = options, seed
        self._given = Splats.of(stored.decoded, views.original.positions.device)
        kind = "photographs" if views.photographed else "pictures of the original"
        self.name = f"L1 and D-SSIM, {kind}"
        self._coded: deque[tuple[RoundedState, int]] = deque(maxlen=2)
        self._fitted: tuple[RoundedState, RoundedState] | None = None
        self._finer = 1.0
        self._start(stored)

    def _start(self, stored: latents.StoredScene) -> None:
        """Create the trainable scene and its rate control from a coded scene."""
        options, views = self._options, self._views
        self.student: SceneStudent = SceneStudent(stored, views.original.positions.device)
        rounded = self.student.rounded()
        encoded = self.student.encoded(rounded)
        beside = size_of(self._packed(encoded, LONGEST)) - encoded.nbytes
        self._allowed = int(self._file.file.nbytes * options.relative_size) - beside
        with torch.no_grad():
            bits = float(self.student.bits(rounded))
            loss = float(self._pictures(self.student(rounded), views.validation))
        self.student.rate_control = RateControl(
            loss=loss, bits=bits, nbytes=encoded.nbytes, allowed=self._allowed
        )

    def begin(self, steps: int) -> None:
        """Begin with finer steps where training is long enough to win their bytes back."""
        finer = self._options.finer * self._options.relative_size**POWER
        finer = 1 + (finer - 1) * min(1.0, steps / _LONG)
        codes = self._stored.parameters.harmonic_spec is not None  # these have no steps
        if finer > 1 and not codes and latents.has_encoder_symbols(self._stored):
            self._finer = finer
            self._start(latents.encoded_finer(self._stored, finer))
        self.student.rate_control.begin(steps)

    def train_batch(self, step: int) -> Batch:
        """The indices of the views of one step, shuffled anew in every epoch."""
        train, size = self._views.train, self._options.batch_size
        indices = []
        for at in range(step * size, (step + 1) * size):
            epoch, place = divmod(at, len(train))
            order = np.random.default_rng([self._seed, epoch]).permutation(len(train))
            indices.append(train[order[place]])
        return {"view": torch.tensor(indices)}

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss over views, in training with the gradient of the cost of the bytes.

        Beyond training, of the file as it will be written: before the first step, of the file as it
        came. Should it still be too large, its loss is so much higher that it is not kept.
        """
        if not self.student.training and self._untouched:
            return self._pictures(self._given, batch["view"].tolist())
        rounded = self.student.rounded() if self.student.training else self.fitted()
        loss = self._pictures(self.student(rounded), batch["view"].tolist())
        if self.student.training:
            bits = self.student.bits(rounded)
            cost: Tensor = self.student.rate_control(bits, lambda: self._nbytes(rounded))
            return loss + (cost - cost.detach())
        over = self._nbytes(rounded) / self._allowed - 1
        return loss + _OVER * max(0.0, over)

    @property
    def _untouched(self) -> bool:
        """Whether no step was taken and the file already has an allowed size."""
        return int(self.student.rate_control.steps) == 0 and self._options.relative_size >= 1

    def fitted(self) -> RoundedState:
        """The rounded state to write, with cheaper symbols where the file would be too large.

        Where that cannot be reached, it is rounded to what is nearest.
        """
        plain = self.student.rounded()
        if self._fitted is None or not _same(self._fitted[0], plain):
            self._fitted = plain, self._small(plain)
        return self._fitted[1]

    def _small(self, plain: RoundedState) -> RoundedState:
        if self._nbytes(plain) <= self._allowed:
            return plain

        def fits(thrift: float) -> bool:
            return self._nbytes(self.student.rounded(thrift)) <= self._allowed

        place = bisect_left(_THRIFT, True, key=fits)  # more thrift, fewer bytes
        return plain if place == len(_THRIFT) else self.student.rounded(_THRIFT[place])

    def _pictures(self, splats: Splats, views: Sequence[int]) -> Tensor:
        """The mean loss of the pictures of the given views."""
        total = torch.zeros((), device=splats.positions.device)
        for index in views:
            picture = render(splats, self._views.cameras[index], self._views.drawing).colour
            total = total + self._views.target(index).loss(picture, self._options.ssim)
        return total / len(views)

    def validation(self) -> Sequence[Batch]:
        """All validation views in one batch, for which the file is decoded once."""
        return ({"view": torch.tensor(self._views.validation)},)

    def reference_loss(self) -> float:
        """The loss of the original; 0 where its own pictures are the targets."""
        if not self._views.photographed:
            return 0.0
        with torch.no_grad():
            return float(self._pictures(self._views.original, self._views.validation))

    def groups(self) -> list[dict[str, Any]]:
        """One parameter group: all latents are in steps and share a learning rate."""
        latents = list(self.student.parameters())
        rate = CODES_RATE if self.esteps() else RATE
        return [{"params": latents, "lr_scale": rate, "betas": BETAS, "eps": EPS}]

    def esteps(self) -> Sequence[EStep]:
        """The E-step of the harmonics, where they are codes."""
        harmonics = self.student.harmonics
        return (harmonics,) if isinstance(harmonics, CodeHarmonics) else ()

    def _nbytes(self, rounded: RoundedState) -> int:
        """Bytes of all streams of a rounded state; the last two results are cached."""
        for state, nbytes in self._coded:
            if _same(state, rounded):
                return nbytes
        nbytes = self.student.encoded(rounded).nbytes
        self._coded.append((rounded, nbytes))
        return nbytes

    def packed(self) -> Packed:
        """The trained scene as a file whose manifest has newly measured errors.

        The file as it came, where training has not begun or was of no use.
        """
        file = self._file.file
        if self._untouched:
            chunks = range(file.manifest.chunks)
            parts = {
                name: [bytes(file.part(name, chunk)) for chunk in chunks]
                for name in file.manifest.chunked
            }
            names = [name for name in file.manifest.streams if name not in (INDEX, *parts)]
            whole = {name: bytes(file.stream(name)) for name in names}
            return self._whole(file.manifest, whole, parts)
        encoded = self.student.encoded(self.fitted())
        return self._packed(encoded, measure(self._original, encoded))

    def _packed(self, encoded: Encoded, errors: Mapping[str, Mapping[str, float]]) -> Packed:
        before = self._file.file.manifest
        manifest = dataclasses.replace(
            before,
            fingerprint=_fingerprint(before.fingerprint, encoded),
            attributes=tuple(
                dataclasses.replace(a, spec=self._spec(a.spec), errors=errors.get(a.name, a.errors))
                for a in before.attributes
            ),
            parameters=parameters_to_json(encoded.parameters),
            streams={},
            versions=library_versions(),
        )
        return self._whole(manifest, encoded.whole, encoded.chunked)

    def _spec(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """The manifest entry of an attribute with its steps divided by the finer factor."""
        if "steps" not in spec:
            return spec
        return {**spec, "steps": [float(f"{step / self._finer:.4g}") for step in spec["steps"]]}

    def _whole(
        self,
        manifest: FileManifest,
        whole: Mapping[str, bytes],
        chunked: Mapping[str, Sequence[bytes]],
    ) -> Packed:
        return Packed(
            manifest=manifest,
            whole=whole,
            chunked=chunked,
            source_nbytes=self._original.nbytes,
        )


def calibration(source: str, baseline: str, options: CalibrateOptions, run: Run) -> SceneTask:
    """Prepares the calibration of a file beside the scene it was made from.

    Raises:
        ArtifactError: the file is damaged.
        SourceError: the scene is another one or cannot be read, or views are missing.
    """
    device = drawing_device(run.device)
    file = SceneFile(source)
    loaded = load(baseline).relative_to(file.parameters.origin)
    original = loaded.scene
    check_values(original, baseline)
    stored = latents.read(file, original, baseline)
    mip = file.parameters.antialiased
    views = training_views(options, original, antialiased=mip, device=device, origin=loaded.origin)
    return SceneTask(file, stored, original, views, options, run.seed)


def _same(one: RoundedState, other: RoundedState) -> bool:
    """Whether two rounded states have the same symbols and bits."""
    return all(
        a.bits == b.bits
        and all(np.array_equal(a.sequences[k][0], b.sequences[k][0]) for k in a.sequences)
        for a, b in zip(one.chunks, other.chunks, strict=True)
    )


def _fingerprint(before: str, encoded: Encoded) -> str:
    """Hash of the file before calibration and of its streams afterwards."""
    digest = hashlib.sha256(before.encode() + encoded.models)
    for parts in encoded.chunked.values():
        for part in parts:
            digest.update(part)
    return digest.hexdigest()
