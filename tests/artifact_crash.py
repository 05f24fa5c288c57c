"""Kill a writer with SIGKILL before, and in the middle of, every system call that it makes.

Run as a script (one process imports torch, then forks): ``artifact_crash.py FOLDER MODE STEP``.
Prints one JSON object; exits with 1 and a line on stderr at the first violated promise.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from artifact_model import snapshot, write_tiny

from dpq_core.artifact import Artifact, files, stream
from dpq_core.errors import ArtifactError

CALLS = [(os, "write"), (os, "fsync"), (os, "truncate"), (os, "ftruncate")]
CALLS += [(Path, name) for name in ("mkdir", "unlink", "rename", "rmdir", "write_bytes")]
CALLS += [(shutil, "rmtree")]


os.fsync = lambda descriptor: None  # a kill loses no page that the kernel has; fsync is slow


def arm(kill_at: int) -> None:
    """Count the calls from now on; die by SIGKILL in call number ``kill_at``."""
    counter = itertools.count()

    def wrap(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args, **kwargs):
            if next(counter) == kill_at:
                if name == "write":  # half of the bytes arrive
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, call)

    for owner, name in CALLS:
        wrap(owner, name)


def in_child(kill_at: int, out: Path, options: dict) -> bool:
    """Write in a forked process; whether it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            arm(kill_at)
            write_tiny(out, **options)
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"kill at {kill_at}: {error!r}\n")
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(1)
    return os.WIFEXITED(status)


def check_unfinished(out: Path, whole: list[dict]) -> None:
    """What carries the name ``out`` is absent, or one whole artifact."""
    if out.exists():
        Artifact.open(out).verify()
        assert snapshot(out) in whole, "a mixture of two artifacts"
    else:
        assert not Artifact.is_artifact(out)
        with contextlib.suppress(ArtifactError):
            Artifact.open(out)
            raise AssertionError("opened what is not there")


def main(folder: Path, mode: str, step: int) -> None:
    """Kill at 0, step, 2 * step, ... until a run survives; resume each time and compare."""
    stream.SYNC_SECONDS = 0.0 if mode != "lazy" else 1e9
    options = {"shard_bytes": 120}
    write_tiny(folder / "reference", **options)
    reference = snapshot(folder / "reference")
    whole = [reference]
    if mode == "fallback":
        files._exchange = lambda a, b: False
    if mode in ("overwrite", "fallback"):
        write_tiny(folder / "old", source="older")
        whole.append(snapshot(folder / "old"))
    kept = 0
    for kill_at in itertools.count(step=step):
        out = folder / f"run{kill_at}" / "out"
        options.pop("resume", None)
        if len(whole) == 2:
            shutil.copytree(folder / "old", out)
            options["overwrite"] = True
        survived = in_child(kill_at, out, options)
        check_unfinished(out, whole)
        assert mode != "overwrite" or out.exists(), "neither the old nor the new artifact is there"
        options["resume"] = True
        if not survived:
            in_child(kill_at // 2, out, options)  # and the resumed run is killed as well
        journal = out.with_name("out.partial") / "journal.jsonl"
        kept += max(0, journal.read_text().count("\n") - 1) if journal.exists() else 0
        write_tiny(out, **options)
        assert snapshot(out) == reference, f"killed at {kill_at}: other bytes"
        assert [path.name for path in out.parent.iterdir()] == ["out"], "leftovers"
        shutil.rmtree(out.parent)
        if survived:
            break
    sys.stdout.write(json.dumps({"kills": kill_at, "kept": kept}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
