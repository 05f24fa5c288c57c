"""Which views train a scene and which judge it."""

from __future__ import annotations

from collections.abc import Sequence

from dpq_gaussian.cameras.camera import Camera

HOLD = 8


def held_out(
    cameras: Sequence[Camera], hold: int = HOLD
) -> tuple[tuple[Camera, ...], tuple[Camera, ...]]:
    """Training and held-out views: every 8th by name, from the first, as Mip-NeRF 360 does."""
    ordered = sorted(cameras, key=lambda camera: camera.name)
    train = tuple(camera for at, camera in enumerate(ordered) if at % hold)
    return train, tuple(ordered[::hold])
