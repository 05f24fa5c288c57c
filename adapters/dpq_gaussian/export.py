"""``dpq export`` of splat scenes: to .ply, .splat and .spz, from a .dpq or any readable file."""

from __future__ import annotations

from pathlib import Path

from dpq_core.plugin.results import Export
from dpq_core.run import Run
from dpq_gaussian.options import ExportOptions


def export(source: str, to: str, options: ExportOptions, run: Run, out: Path) -> Export:
    """Writes a scene as one file that other programs open, replacing an existing one.

    Args:
        source: ``builtin:NAME``, a .dpq, or a splat file.
        to: one of ``EXPORTS``.
        options: the axes of the scene, and whether unusable values are repaired.
        run: unused but for its progress; the result depends on nothing random.
        out: the file.

    Raises:
        SourceError: the source is missing, damaged or has unusable values; ``out`` is a folder or
            in none.
    """
    from dpq_gaussian.formats import Target, write_scene
    from dpq_gaussian.loading import load
    from dpq_gaussian.scene import check_values, repaired

    loaded = load(source, axes=options.axes)
    scene, notes = loaded.scene, list(loaded.notes)
    if options.repair:
        scene, changes = repaired(scene, source)
        notes += changes
    check_values(scene, source)
    target = Target(
        axes=options.output_axes,
        antialiased=loaded.antialiased,
        flat=loaded.flat,
        origin=loaded.origin,
        spz_version=options.spz_version,
    )
    written = write_scene(scene, out, to, target=target, overwrite=True)
    return Export(files=(written.path,), notes=(*notes, *written.notes))
