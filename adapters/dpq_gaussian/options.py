"""The options of every verb for Gaussian splat scenes: one dataclass per verb."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from dpq_core.errors import ANY, Hint, SpecError
from dpq_core.spec import QuantSpec
from dpq_gaussian.colours import BACKGROUNDS, colour
from dpq_gaussian.policy import ATTRIBUTES, CODERS, PQ_SPEC, PRESETS, Policy, parse_factor

EXPORTS = ("ply", "splat", "spz")
"""``Adapter.exports`` of the Gaussian adapter."""

NONE = "none"
"""What ``--baseline`` takes to be left out."""

RIG_VIEWS = 12
FRAMES = 36
SIZE = 512  # pixels

_WITH_CAMERAS = Hint.of("give {} with it", cameras=ANY)
_MAX_VIEWS = 10_000
_SIZES = (16, 8192)  # pixels; SSIM needs a window of 11
_MAX_SIDE = 8192  # pixels
_MAX_FRAMES = 3600
_STEEPEST = 85  # degrees


def _option(default: Any, help_text: str) -> Any:
    """A field of an options dataclass with its default and its help text."""
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """Options of ``dpq compress``: size, fidelity, and the cameras that look at the scene."""

    preset: str = _option("balanced", f"size against fidelity: {', '.join(PRESETS)}")
    quality: float = _option(
        1.0, "divides every step of the preset: 2 is finer by 6 dB, 0.5 coarser"
    )
    attribute: tuple[str, ...] = _option(
        (), "NAME=FACTOR: as --quality for one of " + ", ".join(ATTRIBUTES)
    )
    harmonics: str = _option(
        "transform", "coding of the harmonics: transform (smaller), or pq (product quantization)"
    )
    harmonics_spec: str = _option(
        "",
        "of --harmonics pq: d=15,K=1024; d of the 45 numbers share a code, K codewords "
        "(2..65536), conv_layout=channel (by band) or spatial (by colour channel), scope, seed",
    )
    position_bits: int = _option(0, "bits per axis that positions have at least, of the scene")
    cameras: str = _option(
        "",
        "poses from which the scene is seen (COLMAP folder, cameras.json, transforms.json): bytes "
        "go where these look; without it, to what cameras set up around the scene see",
    )

    def __post_init__(self) -> None:
        """Check every field."""
        _check_choice("preset", self.preset, PRESETS)
        _check_range("quality", self.quality, 0.01, 100)
        _check_range("position_bits", self.position_bits, 0, 32)
        for text in self.attribute:
            if parse_factor(text)[0] == "harmonics" and self.harmonics == "pq":
                raise SpecError("harmonics by pq have no steps", option="attribute", value=text)
        _check_choice("harmonics", self.harmonics, CODERS)
        if self.harmonics_spec and self.harmonics != "pq":
            hint = Hint.of("give {} with it", harmonics="pq")
            raise SpecError("is for harmonics by pq", hint, option="harmonics_spec")
        self.harmonic_spec()

    def harmonic_spec(self) -> QuantSpec | None:
        """The product quantization of the harmonics; None for transform coding."""
        if self.harmonics != "pq":
            return None
        from dpq_core.spec import Override
        from dpq_gaussian.codec import codebooks

        if self.harmonics_spec:
            try:
                spec = Override.parse(f"harmonics={self.harmonics_spec}").apply(PQ_SPEC)
                if spec is None:
                    raise SpecError("write fields of a spec, such as d=15,K=1024")
                codebooks.partition(1, 15, spec)
            except SpecError as error:
                raise SpecError(str(error), option="harmonics_spec") from None
            return spec
        return PQ_SPEC

    def policy(self) -> Policy:
        """The quantization policy: the preset with the options' factors applied."""
        factors = dict.fromkeys(ATTRIBUTES, self.quality)
        for text in self.attribute:
            name, factor = parse_factor(text)
            factors[name] *= factor
        policy = PRESETS[self.preset].refined(factors, self.position_bits)
        return dataclasses.replace(policy, harmonic_spec=self.harmonic_spec())


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Options of ``dpq calibrate``: the training views, the loss and the allowed size."""

    cameras: str = _option(
        "",
        "cameras, with their photographs (COLMAP folder, cameras.json, "
        "transforms.json): train on all but every 8th; without photographs, or without any "
        "cameras (some are set up around the scene), pictures of the original take their place",
    )
    photographs: bool = _option(True, "train on the photographs of --cameras, if there are any")
    distill: float = _option(
        0.75,
        "share of the original's picture in every photograph that is trained on: "
        "photographs alone are learned by heart",
    )
    downscale: float = _option(
        1.0,
        "divides the sides of the pictures of --cameras; a scene looks best at "
        "the size that it was trained at",
    )
    pixels: int = _option(384, "width and height of the rig's pictures in pixels")
    batch_size: int = _option(2, "views of one step")
    ssim: float = _option(0.2, "share of 1 - SSIM in the loss; the rest is L1")
    finer: float = _option(
        1.5,
        "training starts from the original in steps so many times finer than the "
        "artifact's (adapted to --relative-size, less in runs under 1000 --steps), and the "
        "price of bits takes them back; 1, or harmonics by pq: from the artifact's own symbols",
    )
    relative_size: float = _option(1.0, "bytes of the result at most, relative to the artifact's")
    background: str = _option("black", f"{', '.join(BACKGROUNDS)}, or a colour such as #8090a0")

    def __post_init__(self) -> None:
        """Check every field."""
        _check_range("downscale", self.downscale, 1, 1000)
        _check_range("pixels", self.pixels, *_SIZES, unit=" pixels")
        _check_range("distill", self.distill, 0, 1)
        _check_range("batch_size", self.batch_size, 1, 1000)
        _check_range("ssim", self.ssim, 0, 1)
        _check_range("finer", self.finer, 1, 4)
        _check_range("relative_size", self.relative_size, 0.5, 2)
        colour(self.background)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of ``dpq eval``: the original, the views and the metrics."""

    baseline: str = _option(
        "",
        "the uncompressed scene, whose pictures are compared with; by default the source of "
        f"the artifact; {NONE}: no comparison",
    )
    cameras: str = _option(
        "",
        "cameras, with their photographs if there are any: a COLMAP folder, cameras.json "
        "or transforms.json; by default a rig around the original",
    )
    all_cameras: bool = _option(False, "all cameras instead of the held-out ones, every 8th")
    limit: int = _option(
        0, f"compare at most so many cameras; 0: all held-out ones, {RIG_VIEWS} of the rig"
    )
    downscale: float = _option(1.0, "divides the sides of given cameras' pictures")
    pixels: int = _option(SIZE, "width and height of the rig's pictures in pixels")
    up: str = _option("-y", "the axis of the scene that points up: rig")
    background: str = _option("black", f"{', '.join(BACKGROUNDS)}, or a colour such as #8090a0")
    antialiased: bool | None = _option(
        None, "Mip-Splatting's filter; by default if the scene says it needs it"
    )
    axes: str = _option(
        "",
        "axes of the source, such as rdf; by default its format's, turned where the "
        "original lies otherwise",
    )
    against: tuple[str, ...] = _option((), "further files of the same scene for the same table")
    lpips: str = _option("", "VGG-16 weights (vgg16-397923af.pth of torchvision) to measure LPIPS")
    encode: str = _option("", "preset to code the original with once more, for its encode seconds")

    def __post_init__(self) -> None:
        """Check every field."""
        _check_range("limit", self.limit, 0, _MAX_VIEWS)
        _check_range("downscale", self.downscale, 1, 1000)
        _check_range("pixels", self.pixels, *_SIZES, unit=" pixels")
        if self.all_cameras and not self.cameras:
            raise SpecError("a rig has no held-out views", _WITH_CAMERAS, option="all_cameras")
        if self.encode:
            _check_choice("encode", self.encode, PRESETS)
        colour(self.background)


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Options of ``dpq sample``: the cameras, the orbit and the pictures."""

    cameras: str = _option(
        "",
        "draw from these: a COLMAP folder, cameras.json or transforms.json; by default "
        "an orbit is drawn",
    )
    names: tuple[str, ...] = _option((), "only the camera of this name; by default all of the file")
    frames: int | None = _option(
        None, f"pictures of the orbit; by default {FRAMES}, or 0 with --cameras"
    )
    width: int = _option(0, f"pixels; 0: the camera's own, {SIZE} in an orbit")
    height: int = _option(0, "pixels; 0: in proportion to the width, or as the width")
    elevation: float | None = _option(
        None, "degrees above the horizon of the orbit; by default the clearest view"
    )
    up: str = _option("-y", "the axis of the scene that points up")
    background: str = _option("black", f"{', '.join(BACKGROUNDS)}, or a colour such as #8090a0")
    antialiased: bool | None = _option(
        None, "Mip-Splatting's filter; by default if the scene says it needs it"
    )
    sh_degree: int = _option(3, "harmonics to use, 0 to 3")
    axes: str = _option("", "axes of the source, such as rdf; by default its format's")
    baseline: str = _option("", "the uncompressed scene, to show beside it at the same cameras")
    fps: float = _option(12.0, "frames per second of the orbit")
    mp4: bool = _option(False, "also write the orbit as MP4; needs PyAV (pip install 'dpq[video]')")

    def __post_init__(self) -> None:
        """Check every field."""
        if self.names and not self.cameras:
            raise SpecError("an orbit has no named cameras", _WITH_CAMERAS, option="names")
        for name, value in (("width", self.width), ("height", self.height)):
            _check_range(name, value, 0, _MAX_SIDE)
        if self.frames is not None:
            _check_range("frames", self.frames, 0, _MAX_FRAMES)
        if self.orbit_frames == 0 and not self.cameras:
            raise SpecError("nothing is drawn", _WITH_CAMERAS, option="frames", value=0)
        if self.elevation is not None:
            _check_range("elevation", self.elevation, -_STEEPEST, _STEEPEST)
        _check_range("sh_degree", self.sh_degree, 0, 3)
        _check_range("fps", self.fps, 0.1, 100)
        colour(self.background)

    @property
    def orbit_frames(self) -> int:
        """Number of pictures of the orbit."""
        if self.frames is not None:
            return self.frames
        return 0 if self.cameras else FRAMES


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of ``dpq export``: axes, and repair of unusable values."""

    output_axes: str | None = _option(
        None, "axes of the new file, e.g. rdf or rub; default: rub for spz, else rdf"
    )
    axes: str | None = _option(
        None, "axes of the source, where it is not as its format has it (spz: rub)"
    )
    repair: bool = _option(False, "drop Gaussians with unusable values (NaN, infinite positions)")
    spz_version: int = _option(
        3, "of a new .spz: 3, or 4 (zstd; smaller, and fewer viewers know it)"
    )

    def __post_init__(self) -> None:
        """Check every field."""
        _check_range("spz_version", self.spz_version, 3, 4)
        for axes in (self.output_axes, self.axes):
            if axes is not None:
                from dpq_gaussian.formats.coordinates import parse_axes

                parse_axes(axes)


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a value that is not one of the choices."""
    if value not in choices:
        raise SpecError(f"must be one of {', '.join(choices)}", option=name, value=value)


def _check_range(name: str, value: float, least: float, largest: float, *, unit: str = "") -> None:
    """Refuse a value outside of its range; NaN is outside of every range."""
    if not least <= value <= largest:
        raise SpecError(f"must be {least} to {largest}{unit}", option=name, value=value)
