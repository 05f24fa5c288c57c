"""Options of ``dpq sample`` for Gaussian splats."""

from __future__ import annotations

from dataclasses import dataclass, field

from dpq_core.errors import SpecError

BACKGROUNDS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "grey": (0.5, 0.5, 0.5)}
FRAMES = 36
SIZE = 512

_MAX_SIDE = 8192  # pixels
_MAX_FRAMES = 3600
_STEEPEST = 85.0  # degrees


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What is drawn, and from where."""

    cameras: str = field(
        default="",
        metadata={
            "help": "draw from these: a COLMAP folder, cameras.json or transforms.json; by default "
            "an orbit is drawn"
        },
    )
    names: tuple[str, ...] = field(
        default=(), metadata={"help": "only the camera of this name; by default all of the file"}
    )
    frames: int | None = field(
        default=None,
        metadata={"help": f"pictures of the orbit; by default {FRAMES}, or 0 with --cameras"},
    )
    width: int = field(
        default=0, metadata={"help": f"pixels; 0: the camera's own, {SIZE} in an orbit"}
    )
    height: int = field(
        default=0, metadata={"help": "pixels; 0: in proportion to the width, or as the width"}
    )
    elevation: float | None = field(
        default=None,
        metadata={"help": "degrees above the horizon of the orbit; by default the clearest view"},
    )
    up: str = field(default="-y", metadata={"help": "the axis of the scene that points up"})
    background: str = field(
        default="black",
        metadata={"help": f"{', '.join(BACKGROUNDS)}, or a colour such as #8090a0"},
    )
    antialiased: bool | None = field(
        default=None,
        metadata={"help": "Mip-Splatting's filter; by default if the scene says it needs it"},
    )
    sh_degree: int = field(default=3, metadata={"help": "harmonics to use, 0 to 3"})
    source_coordinates: str = field(
        default="", metadata={"help": "axes of the scene, such as rdf; by default its format's"}
    )
    baseline: str = field(
        default="", metadata={"help": "scene to show beside it at the same cameras: before/after"}
    )
    fps: float = field(default=12.0, metadata={"help": "frames per second of the orbit"})
    mp4: bool = field(
        default=False,
        metadata={"help": "also write the orbit as MP4; needs PyAV (pip install 'dpq[video]')"},
    )

    def __post_init__(self) -> None:
        """Check every field."""
        if self.names and not self.cameras:
            raise SpecError("option --names needs --cameras")
        for flag, value in (("--width", self.width), ("--height", self.height)):
            if not 0 <= value <= _MAX_SIDE:
                raise SpecError(f"option {flag} must be 0 to {_MAX_SIDE}, not {value}")
        if self.frames is not None and not 0 <= self.frames <= _MAX_FRAMES:
            raise SpecError(f"option --frames must be 0 to {_MAX_FRAMES}, not {self.frames}")
        if self.orbit_frames == 0 and not self.cameras:
            raise SpecError("option --frames 0 needs --cameras, or nothing is drawn")
        if self.elevation is not None and not abs(self.elevation) <= _STEEPEST:
            raise SpecError(f"option --elevation must be -{_STEEPEST:.0f} to {_STEEPEST:.0f}")
        if self.sh_degree not in range(4):
            raise SpecError(f"option --sh-degree must be 0 to 3, not {self.sh_degree}")
        if not 0.1 <= self.fps <= 100:
            raise SpecError(f"option --fps must be 0.1 to 100, not {self.fps}")
        colour(self.background)

    @property
    def orbit_frames(self) -> int:
        """Pictures of the orbit."""
        if self.frames is not None:
            return self.frames
        return 0 if self.cameras else FRAMES


def colour(text: str) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of a name or ``#rrggbb``.

    Raises:
        SpecError: it is neither.
    """
    if text in BACKGROUNDS:
        return BACKGROUNDS[text]
    digits = text.removeprefix("#")
    try:
        if len(digits) != 6:
            raise ValueError
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        raise SpecError(
            f"option --background: {text!r} is no colour; use {', '.join(BACKGROUNDS)} or #rrggbb"
        ) from None
    return red / 255, green / 255, blue / 255
