"""Options of ``dpq eval`` for Gaussian splats."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dpq_core.errors import SpecError
from dpq_gaussian.policy import PRESETS
from dpq_gaussian.sample_options import BACKGROUNDS, colour

NONE = "none"
"""What ``--original`` takes to be left out."""

RIG_VIEWS = 12
RIG_SIZE = 512  # pixels

_MAX_VIEWS = 10_000
_SIZES = (16, 8192)  # pixels; SSIM needs a window of 11


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is compared with what, and from where."""

    original: str = field(
        default="",
        metadata={
            "help": "uncompressed scene whose pictures are the reference; by default the source of "
            f"the artifact; {NONE}: leave it out"
        },
    )
    cameras: str = field(
        default="",
        metadata={
            "help": "views, with their photographs if there are any: a COLMAP folder, cameras.json "
            "or transforms.json; by default a rig around the original"
        },
    )
    all_views: bool = field(
        default=False, metadata={"help": "all cameras instead of the held-out ones, every 8th"}
    )
    views: int = field(
        default=0,
        metadata={"help": f"at most so many views; 0: all held-out ones, {RIG_VIEWS} of the rig"},
    )
    downscale: float = field(
        default=1.0, metadata={"help": "divides the sides of given cameras' pictures"}
    )
    size: int = field(
        default=RIG_SIZE, metadata={"help": "width and height of the rig's pictures in pixels"}
    )
    up: str = field(default="-y", metadata={"help": "the axis of the scene that points up: rig"})
    background: str = field(
        default="black",
        metadata={"help": f"{', '.join(BACKGROUNDS)}, or a colour such as #8090a0"},
    )
    antialiased: bool | None = field(
        default=None,
        metadata={"help": "Mip-Splatting's filter; by default if the scene says it needs it"},
    )
    axes: str = field(
        default="",
        metadata={
            "help": "axes of the source, such as rdf; by default its format's, turned where the "
            "original lies otherwise"
        },
    )
    against: tuple[str, ...] = field(
        default=(), metadata={"help": "further files of the same scene for the same table"}
    )
    lpips: str = field(
        default="",
        metadata={"help": "VGG-16 weights (vgg16-397923af.pth of torchvision) to measure LPIPS"},
    )
    encode: str = field(
        default="",
        metadata={"help": "preset to code the original with once more, for its encode seconds"},
    )

    def __post_init__(self) -> None:
        """Check every field."""
        if not 0 <= self.views <= _MAX_VIEWS:
            raise SpecError(f"option --views must be 0 to {_MAX_VIEWS}, not {self.views}")
        if not (math.isfinite(self.downscale) and 1 <= self.downscale <= 1000):
            raise SpecError(f"option --downscale must be 1 to 1000, not {self.downscale}")
        if not _SIZES[0] <= self.size <= _SIZES[1]:
            raise SpecError(
                f"option --size must be {_SIZES[0]} to {_SIZES[1]} pixels, not {self.size}"
            )
        if self.all_views and not self.cameras:
            raise SpecError("option --all-views needs --cameras; a rig has no held-out views")
        if self.encode and self.encode not in PRESETS:
            raise SpecError(
                f"option --encode must be one of {', '.join(PRESETS)}, not {self.encode!r}"
            )
        colour(self.background)
