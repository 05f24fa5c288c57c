"""``dpq export`` of splat scenes: to .ply, .splat and .spz, from a .dpq or any readable file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dpq_core.plugin.adapter import Export
from dpq_core.run import Run

EXPORTS = ("ply", "splat", "spz")
"""``Adapter.exports`` of the Gaussian adapter."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of ``dpq export`` for splat scenes."""

    coordinates: str | None = field(
        default=None,
        metadata={"help": "axes of the new file, e.g. rdf or rub; default: rub for spz, else rdf"},
    )
    source_coordinates: str | None = field(
        default=None,
        metadata={"help": "axes of the source, where it is not as its format has it (spz: rub)"},
    )
    repair: bool = field(
        default=False,
        metadata={"help": "drop Gaussians with unusable values, bound infinite opacities"},
    )

    def __post_init__(self) -> None:
        """Check names of axes.

        Raises:
            SpecError: there are no such axes.
        """
        for axes in (self.coordinates, self.source_coordinates):
            if axes is not None:
                from dpq_gaussian.formats.coordinates import known

                known(axes)


def export(source: str, to: str, options: ExportOptions | None, run: Run, out: Path) -> Export:
    """Write a scene as one file that other programs open; replaces what is there.

    Args:
        source: ``builtin:NAME``, a .dpq, or a splat file.
        to: one of ``EXPORTS``.
        options: None for the defaults.
        run: unused but for its progress; the result depends on nothing random.
        out: the file.

    Raises:
        SourceError: the source is missing, damaged or has unusable values; ``out`` is a folder or
            in none.
    """
    from dpq_gaussian.formats import write_scene
    from dpq_gaussian.loading import load
    from dpq_gaussian.repair import repaired
    from dpq_gaussian.scene import check_values

    options = options or ExportOptions()
    loaded = load(source, axes=options.source_coordinates)
    scene, notes = loaded.scene, list(loaded.notes)
    if options.repair:
        scene, changes = repaired(scene, source)
        notes += changes
    check_values(scene, source)
    axes, marked = options.coordinates, loaded.antialiased
    written = write_scene(scene, out, to, axes=axes, antialiased=marked, overwrite=True)
    return Export(files=(written.path,), notes=(*notes, *written.notes))
