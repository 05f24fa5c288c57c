"""What got better or worse between two benchmark records.

    python benchmarks/compare.py A B [--fail] [--all]

A and B are each a file of records (``results/kmeans.jsonl``: the newest record of every spec), one
of its records (``results/kmeans.jsonl:-2``, counted from 1, or from the end) or a git revision (all
records that it holds). Records are compared where suite and spec are the same; times and speeds
only where processor and number of cores are the same, too.

A change counts where it is larger than the noise. Where a record holds several runs, that is the
larger of the two ranges from the fastest run to the slowest, but at least 2 %. For numbers measured
once it is 10 % of times, 5 % of memory, 0.1 % of sizes, 0.1 dB, and 0.5 % of other qualities.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
RESULTS = "benchmarks/results"
LEAST_NOISE = 0.02
"""Of several runs, relative: three runs agree by chance more closely than the next three will."""

BUSY = 1.5
"""Load per core from which times are doubtful; a benchmark itself is a load of 1 per core."""


@dataclass(frozen=True)
class Kind:
    """A kind of number.

    Attributes:
        pattern: of the last part of the metric's name.
        higher: a higher number is better.
        noise: change of a single measurement that does not count.
        relative: whether that is a share of the number, or in its own unit.
        of_machine: it says something of the machine, too.
    """

    pattern: str
    higher: bool
    noise: float
    relative: bool = True
    of_machine: bool = False


KINDS = (  # the first that matches counts
    Kind(r"(^|_)(perplexity|bits_per_byte|mse|error|loss|lpips|fid|kid|kl|nll)$", False, 0.005),
    Kind(r"per_second(_\w+)?$|(^|_)(speedup|times_faster)$", True, 0.10, of_machine=True),
    Kind(r"(^|_)(seconds|ms|us)$|(^|_)(slowdown|step_ratio)$", False, 0.10, of_machine=True),
    Kind(r"peak_(bytes|MB|GB)$|(^|_)(memory|peak)$", False, 0.05, of_machine=True),
    Kind(r"(^|_)(n?bytes|kB|MB|GB)$|^(bytes|bits)_(per|in)_", False, 0.001),
    Kind(r"(^|_)(weight|size)_ratio$", False, 0.001),
    Kind(r"(^|_)dB$", True, 0.1, relative=False),
    Kind(r"(^|_)(ssim|agreement|accuracy|recovery|ratio)$", True, 0.005),
)


@dataclass(frozen=True)
class Measurement:
    """One number of a record: the median of its runs, and their range (None for a single run)."""

    value: float
    spread: float | None = None


@dataclass(frozen=True)
class Change:
    """One metric in two records.

    Attributes:
        where: suite, rows and keys that lead to it.
        before: in A.
        after: in B.
        noise: absolute change that does not count.
        verdict: ``better``, ``worse`` or ``same``.
    """

    where: str
    before: float
    after: float
    noise: float
    verdict: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A", help="before: a file, a record of a file, or a revision")
    parser.add_argument("b", metavar="B", help="after")
    parser.add_argument("--fail", action="store_true", help="exit with 1 if something got worse")
    parser.add_argument("--all", action="store_true", help="show what stayed the same, too")
    options = parser.parse_args(arguments)
    try:
        changes, notes = compare(read(options.a), read(options.b))
    except ValueError as error:
        parser.error(str(error))
    for note in notes:
        print(f"note: {note}")
    for change in changes:
        if options.all or change.verdict != "same":
            print(line(change))
    count = {v: sum(c.verdict == v for c in changes) for v in ("better", "worse", "same")}
    print(f"{count['better']} better, {count['worse']} worse, {count['same']} within the noise")
    if not changes:
        print("nothing could be compared")
        return 2
    return 1 if options.fail and count["worse"] else 0


def line(change: Change) -> str:
    """One line of the report."""
    percent = f"{change.after / change.before - 1:+.1%}" if change.before else "from zero"
    values = f"{change.before:.6g} -> {change.after:.6g}"
    return f"{change.verdict:<7}{change.where}: {values} ({percent}, noise {change.noise:.2g})"


def read(name: str) -> list[dict[str, Any]]:
    """Records of a file, of ``FILE:NUMBER``, or of a git revision.

    Raises:
        ValueError: it is none of these, or the file is damaged.
    """
    path, _, number = name.rpartition(":")
    if Path(name).is_file():
        return _parsed(Path(name).read_text(encoding="utf-8"), name)
    if Path(path).is_file() and re.fullmatch(r"-?[1-9]\d*", number):
        records = _parsed(Path(path).read_text(encoding="utf-8"), path)
        index = int(number) - (int(number) > 0)
        if not -len(records) <= index < len(records):
            raise ValueError(f"{path} has {len(records)} records, not one of number {number}")
        return [records[index]]
    files = _git("ls-tree", "-r", "--name-only", f"{name}^{{commit}}", "--", f"{RESULTS}/")
    if files is None:
        raise ValueError(f"{name} is neither a file of records nor a git revision")
    records = []
    for file in files.splitlines():
        if file.endswith(".jsonl"):
            records += _parsed(_git("show", f"{name}:{file}") or "", f"{name}:{file}")
    return records


def compare(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> tuple[list[Change], list[str]]:
    """Every metric that two sets of records share, and notes on what cannot be compared.

    Args:
        before: records as ``record.append`` writes them; of one suite and spec the last counts.
        after: likewise.
    """
    old, new = _newest(before), _newest(after)
    changes: list[Change] = []
    notes: list[str] = []
    if len(old) == len(new) == 1 and old.keys() != new.keys():
        (a,), (b,) = old.values(), new.values()
        return [], [f"not comparable: {_difference(a, b)}"]
    for key in [key for key in old if key not in new]:
        notes.append(f"not in B: {_title(old[key])}")
    for key in [key for key in new if key not in old]:
        notes.append(f"not in A: {_title(new[key])}")
    for key in [key for key in old if key in new]:
        a, b = old[key], new[key]
        machines = [(r["machine"]["cpu"], r["machine"]["cores"]) for r in (a, b)]
        if machines[0] != machines[1]:
            of_a, of_b = (f"{cpu}, {cores} cores" for cpu, cores in machines)
            notes.append(
                f"times and memory not comparable: {_title(a)} ran on {of_a} and on {of_b}"
            )
        for name, record in (("A", a), ("B", b)):
            load, cores = record["machine"]["load_average"], record["machine"]["cores"]
            if load > BUSY * cores:
                notes.append(f"{name} was busy, load {load:.1f} on {cores} cores: {_title(record)}")
        changes += _changes(a, b, same_machine=machines[0] == machines[1])
    return changes, notes


def _changes(a: Mapping[str, Any], b: Mapping[str, Any], *, same_machine: bool) -> Iterator[Change]:
    old, new = dict(_measurements(a["results"])), dict(_measurements(b["results"]))
    for path, before in old.items():
        kind = _kind(path[-1])
        if path not in new or kind is None or (kind.of_machine and not same_machine):
            continue
        after = new[path]
        noise = _noise(kind, before, after)
        gain = (after.value - before.value) * (1 if kind.higher else -1)
        verdict = "same" if abs(gain) <= noise else "better" if gain > 0 else "worse"
        where = " / ".join((_title(a), *path))
        yield Change(where, before.value, after.value, noise, verdict)


def _noise(kind: Kind, before: Measurement, after: Measurement) -> float:
    spreads = [m.spread for m in (before, after) if m.spread is not None]
    if len(spreads) == 2:
        return max(*spreads, LEAST_NOISE * abs(before.value))
    single = kind.noise * abs(before.value) if kind.relative else kind.noise
    return max(single, *spreads, 0.0)


def _kind(name: str) -> Kind | None:
    """What is known of metrics of that name; None where nothing is."""
    return next((kind for kind in KINDS if re.search(kind.pattern, name)), None)


def _measurements(
    results: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Measurement]]:
    """Numbers of results with the keys that lead to them.

    Rows of a table are named by their fields that are no metrics. A list of numbers holds the runs
    of one metric; a median beside it says the same once more.
    """
    if isinstance(results, Mapping):
        for key, value in results.items():
            repeated = key.removeprefix("median_")
            if key == repeated or not isinstance(results.get(repeated), list):
                yield from _measurements(value, (*path, key))
    elif isinstance(results, list) and results and all(map(_is_number, results)):
        yield path, Measurement(statistics.median(results), max(results) - min(results))
    elif isinstance(results, list):
        for row in results:
            if isinstance(row, Mapping):
                named = [f"{k}={v}" for k, v in row.items() if _names_a_row(k, v)]
                numbers = {k: v for k, v in row.items() if not _names_a_row(k, v)}
                yield from _measurements(numbers, (*path, " ".join(named)))
    elif path and _is_number(results):
        yield path, Measurement(float(results))


def _names_a_row(key: str, value: Any) -> bool:
    return _kind(key) is None and not isinstance(value, Mapping)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _newest(records: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The last record of every suite and spec."""
    return {json.dumps([r["suite"], r["spec"]], sort_keys=True): r for r in records}


def _title(record: Mapping[str, Any]) -> str:
    """The suite, and what tells its records apart."""
    spec = record["spec"]
    parts = [f"{k}={v}" for k, v in spec.items()] if isinstance(spec, Mapping) else [str(spec)]
    return " ".join([record["suite"], *parts])


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    if a["suite"] != b["suite"]:
        return f"suite {a['suite']} and {b['suite']}"
    keys = [k for k in {**a["spec"], **b["spec"]} if a["spec"].get(k) != b["spec"].get(k)]
    parts = (f"{k} is {a['spec'].get(k)} and {b['spec'].get(k)}" for k in keys)
    return f"suite {a['suite']}, {', '.join(parts)}"


def _parsed(text: str, name: str) -> list[dict[str, Any]]:
    try:
        records = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is damaged: {error}") from None
    for number, record in enumerate(records, 1):
        missing = {"suite", "spec", "machine", "results"} - set(record)
        if missing:
            raise ValueError(f"{name}: record {number} lacks {', '.join(sorted(missing))}")
    return records


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
