"""Options of ``dpq calibrate`` for splat scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dpq_core.errors import SpecError
from dpq_gaussian.sample_options import BACKGROUNDS, colour

_SIDES = (16, 8192)
"""Of pictures, in pixels; the window of SSIM has 11."""


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """What the scene is compared with while it is trained, and how large it may become."""

    views: str = field(
        default="",
        metadata={
            "help": "cameras with their photographs (COLMAP folder, cameras.json, "
            "transforms.json): train on all but every 8th; without photographs, or without any "
            "cameras (a rig is set up), pictures of the original take their place"
        },
    )
    photographs: bool = field(
        default=True,
        metadata={"help": "train on the photographs of --views, where there are any"},
    )
    distill: float = field(
        default=0.75,
        metadata={
            "help": "share of the original's picture in every photograph that is trained on: "
            "photographs alone are learned by heart"
        },
    )
    downscale: float = field(
        default=1.0,
        metadata={
            "help": "divides the sides of the pictures of --views; a scene looks best at the size "
            "that it was trained at"
        },
    )
    rig_size: int = field(
        default=384, metadata={"help": "width and height of the rig's pictures in pixels"}
    )
    batch: int = field(default=2, metadata={"help": "views of one step"})
    ssim: float = field(
        default=0.2, metadata={"help": "share of 1 - SSIM in the loss; the rest is L1"}
    )
    finer: float = field(
        default=1.5,
        metadata={
            "help": "training starts from the original in steps so many times finer than the "
            "artifact's (adapted to --size, less in runs under 1000 --steps), and the price of "
            "bits takes the bytes back; 1, or harmonics by pq: from the artifact's own symbols"
        },
    )
    size: float = field(
        default=1.0,
        metadata={"help": "bytes of the result, at most, relative to those of the artifact"},
    )
    background: str = field(
        default="black",
        metadata={"help": f"{', '.join(BACKGROUNDS)}, or a colour such as #8090a0"},
    )

    def __post_init__(self) -> None:
        """Check every field."""
        if not (math.isfinite(self.downscale) and 1 <= self.downscale <= 1000):
            raise SpecError(f"option --downscale must be 1 to 1000, not {self.downscale}")
        if not _SIDES[0] <= self.rig_size <= _SIDES[1]:
            raise SpecError(
                f"option --rig-size must be {_SIDES[0]} to {_SIDES[1]} pixels, not {self.rig_size}"
            )
        if not 0 <= self.distill <= 1:
            raise SpecError(f"option --distill must be 0 to 1, not {self.distill}")
        if not 1 <= self.batch <= 1000:
            raise SpecError(f"option --batch must be 1 to 1000, not {self.batch}")
        if not 0 <= self.ssim <= 1:
            raise SpecError(f"option --ssim must be 0 to 1, not {self.ssim}")
        if not 1 <= self.finer <= 4:
            raise SpecError(f"option --finer must be 1 to 4, not {self.finer}")
        if not 0.5 <= self.size <= 2:
            raise SpecError(f"option --size must be 0.5 to 2, not {self.size}")
        colour(self.background)
