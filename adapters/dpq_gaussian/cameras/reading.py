"""Reading of cameras from any known file or folder, and selection among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpq_core.errors import SourceError
from dpq_core.nearest import nearest
from dpq_core.plugin.builtin import BUILTIN_SCHEME
from dpq_gaussian.cameras import inria
from dpq_gaussian.cameras.camera import Camera
from dpq_gaussian.cameras.colmap import read_colmap
from dpq_gaussian.cameras.json_files import mapping, read_json
from dpq_gaussian.cameras.transforms import read_transforms
from dpq_gaussian.scene.sources import locate

_RECONSTRUCTIONS = ("sparse/0", "sparse", "colmap/sparse/0", "0", ".")
_FILES = ("cameras.json", "transforms.json")
_KINDS = "a COLMAP folder (sparse/0), cameras.json or transforms.json"

HOLD = 8


def read_cameras(
    source: str | Path, *, origin: Sequence[float] = (0.0, 0.0, 0.0)
) -> tuple[Camera, ...]:
    """Reads the cameras of a file or folder: COLMAP, ``cameras.json``, ``transforms.json``.

    Args:
        source: the file or folder; ``builtin:NAME`` stands for that of a scene that ships.
        origin: the place in the world that the scene's positions are relative to.

    Raises:
        SourceError: there are none, they cannot be read, or two have the same name.
    """
    path = Path(source)
    if str(source).startswith(BUILTIN_SCHEME):
        path = locate(str(source)).parent
    cameras = _folder(path) if path.is_dir() else _file(path)
    names: set[str] = set()
    for camera in cameras:
        if camera.name in names:
            raise SourceError(f"{path}: two cameras are called {camera.name!r}")
        names.add(camera.name)
    if any(origin):
        cameras = [camera.relative_to(origin) for camera in cameras]
    return tuple(cameras)


def _folder(path: Path) -> list[Camera]:
    for name in _RECONSTRUCTIONS:
        folder = path / name
        if any((folder / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return read_colmap(folder, _photographs(path))
    for name in _FILES:
        if (path / name).is_file():
            return _file(path / name)
    raise SourceError(f"{path}: no cameras there; give {_KINDS}")


def _photographs(path: Path) -> Path:
    """The folder with ``images``: this one, or one above when ``path`` is ``sparse/0`` itself."""
    for folder in (path, *path.resolve().parents[:2]):
        if (folder / "images").is_dir():
            return folder
    return path


def _file(path: Path) -> list[Camera]:
    if path.suffix in (".bin", ".txt") and path.stem in ("cameras", "images"):
        return read_colmap(path.parent, _photographs(path.parent))
    content = read_json(path)
    if isinstance(content, list):
        return inria.read_list(content, path)
    frames = mapping(content, str(path)).get("frames")
    if not isinstance(frames, list) or not frames or not isinstance(frames[0], dict):
        raise SourceError(f"{path}: no cameras in it; give {_KINDS}")
    if "transform_matrix" in frames[0]:
        return read_transforms(content, path)
    return inria.read_frames(content, path)


def select(cameras: Sequence[Camera], names: Sequence[str]) -> tuple[Camera, ...]:
    """Selects the cameras with the given names, in that order; all where there are no names.

    Raises:
        SourceError: a name is unknown.
    """
    if not names:
        return tuple(cameras)
    cameras_by_name = {camera.name: camera for camera in cameras}
    for name in names:
        if name not in cameras_by_name:
            hint = nearest(name, cameras_by_name, most=1, cutoff=0.3)
            raise SourceError(f"no camera {name!r}; {hint}there are {len(cameras_by_name)}")
    return tuple(cameras_by_name[name] for name in names)


def sampled(cameras: Sequence[Camera], most: int, side: int) -> list[Camera]:
    """Picks at most ``most`` cameras, evenly spread, in pictures of at most ``side`` pixels."""
    count = min(most, len(cameras))
    picked = [cameras[i * len(cameras) // count] for i in range(count)]
    return [c.scaled(min(1.0, side / max(c.width, c.height))) for c in picked]


def held_out(
    cameras: Sequence[Camera], hold: int = HOLD
) -> tuple[tuple[Camera, ...], tuple[Camera, ...]]:
    """Splits cameras into training and held-out views: every 8th by name, as Mip-NeRF 360."""
    ordered = sorted(cameras, key=lambda camera: camera.name)
    train = tuple(camera for at, camera in enumerate(ordered) if at % hold)
    return train, tuple(ordered[::hold])
