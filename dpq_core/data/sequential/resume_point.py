"""ResumePoint: the files on disk with which a resumed run repeats no pass over the batches.

``<out>.blocks/trace.json`` is the trace of the uncompressed model; ``inputs-NUMBER`` holds the
inputs of the segment of this number, of one block at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dpq_core.artifact import files, strict_json
from dpq_core.data.sequential.activations import Unstorable
from dpq_core.data.sequential.block_runner import BlockRunner
from dpq_core.data.sequential.capture import BlockTrace, Call, Trace
from dpq_core.errors import ArtifactError

_TRACE = "trace.json"
_INPUTS = "inputs-"
_CONTENT = "content.json"

_DAMAGE = (
    ArtifactError,
    AttributeError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""Exceptions that reading damaged files may raise."""


class ResumePoint:
    """The trace of a run, and the inputs of the block that comes next, on disk.

    What is missing or damaged is made again; so nothing here raises but for a trace that the disk
    refuses to take.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        """Take note of the folders.

        Args:
            folder: of the block store.
            scratch: for what is not complete; on the same disk.
        """
        self._folder, self._scratch = folder, scratch

    def trace(self, make: Callable[[], Trace]) -> Trace:
        """The trace of an earlier run, else a new one.

        Raises:
            ArtifactError: the disk refused.
        """
        path = self._folder / _TRACE
        with contextlib.suppress(*_DAMAGE):
            return _trace_from_json(strict_json.parse(path.read_bytes(), str(path)))
        trace = make()
        with files.replacing(path, files.RESUME) as partial:
            partial.write_text(json.dumps(dataclasses.asdict(trace)), encoding="ascii")
        return trace

    def save(self, number: int, runners: Mapping[str, BlockRunner]) -> None:
        """Keep what runners have stored, in place of what was kept before.

        Where they have stored nothing, or the disk refuses, what was kept before stays.

        Args:
            number: number of the segment whose inputs they are.
            runners: the runners, by names of their folders.
        """
        partial = self._scratch / "inputs"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            content = {name: runner.save(partial / name) for name, runner in runners.items()}
            if not any(content.values()):
                return
            text = json.dumps(content, allow_nan=False)
            (partial / _CONTENT).write_text(text, encoding="ascii")
            path = self._folder / f"{_INPUTS}{number:05d}"
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
        except (Unstorable, ArtifactError, OSError, TypeError, ValueError):
            shutil.rmtree(partial, ignore_errors=True)
            return
        for other in self._folder.glob(f"{_INPUTS}*"):
            if other != path:
                shutil.rmtree(other, ignore_errors=True)

    def load(self, runners: Mapping[str, BlockRunner]) -> int | None:
        """Give runners what was kept of theirs.

        Returns:
            The number of the segment whose inputs they are; None where nothing usable was kept.
        """
        for path in sorted(self._folder.glob(f"{_INPUTS}*"), reverse=True):
            try:
                content = strict_json.parse((path / _CONTENT).read_bytes(), str(path))
                for name, runner in runners.items():
                    if content[name] is not None:
                        runner.restore(path / name, content[name])
                return int(path.name.removeprefix(_INPUTS))
            except _DAMAGE:
                for runner in runners.values():
                    runner.clear()
        return None

    def discard(self) -> None:
        """Delete the inputs."""
        for path in self._folder.glob(f"{_INPUTS}*"):
            shutil.rmtree(path, ignore_errors=True)


def _trace_from_json(content: Mapping[str, Any]) -> Trace:
    blocks = [
        BlockTrace(
            path=block["path"],
            replays=block["replays"],
            wiring=None if block["wiring"] is None else tuple(block["wiring"]),
        )
        for block in content["blocks"]
    ]
    calls = [Call(**call) for call in content["calls"]]
    return Trace(blocks=tuple(blocks), calls=tuple(calls), repeated=content["repeated"])
