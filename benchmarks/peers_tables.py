"""The tables of docs/peers.md and the first one of README.md, from the newest records.

    python benchmarks/peers_tables.py

Peers are in ``results/peers.jsonl``, and so is dpq on the built-in models; what dpq makes of a real
language model is in ``results/language_model.jsonl``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import write_part
from record import RESULTS

CALIBRATED = ("autoround", "gptqmodel", "llamacpp")
"""Peers that look at text; of dpq, the preset ``best`` does."""

NAMES = {
    "hqq": "HQQ",
    "quanto": "optimum-quanto",
    "autoround": "AutoRound",
    "gptqmodel": "GPTQModel",
    "sdnq": "SDNQ",
    "llamacpp": "llama.cpp",
}

OWN = "**dpq**"

RENAMED = {"fast": "--no-data"}
"""Presets of older records -> the option that stands for them today."""

Row = Mapping[str, Any]


REAL = {"model": "smollm2", "context": 1024, "limit": 24, "texts": "test.txt"}
"""Settings that all records of the real language model have in common."""


def newest(path: Path) -> list[Row]:
    """The newest record of every setting in a file of records."""
    rows: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        rows[json.dumps(record["spec"], sort_keys=True)] = record
    return list(rows.values())


def read_rows(folder: Path) -> dict[str, list[Row]]:
    """The newest record of every setting of every peer, by model."""
    models: dict[str, list[Row]] = {}
    for record in newest(folder / "peers.jsonl"):
        model = record["spec"]["model"].removeprefix("builtin:")
        models.setdefault(model, []).append(record)
    return models


def worked(rows: Iterable[Row]) -> list[Row]:
    """The records of settings that did not fail."""
    return [row for row in rows if "failed" not in row["results"]]


@dataclass(frozen=True)
class Point:
    """One setting on the real language model.

    Attributes:
        name: of the tool.
        setting: of the tool, in its own words.
        text: whether it looks at text.
        nbytes: of the files with weights; of dpq, of all files.
        perplexity: of the held-out text.
        seconds: of processors.
    """

    name: str
    setting: str
    text: bool
    nbytes: int
    perplexity: float
    seconds: float

    @property
    def dpq(self) -> bool:
        """Whether it is one of dpq."""
        return self.name == OWN

    def cells(self) -> str:
        """The cells that every table shows of the setting."""
        return (
            f"| {self.name} | {self.setting} | {self.nbytes / 1e6:.1f} MB | {self.perplexity:.2f} |"
        )


def points(folder: Path) -> list[Point]:
    """All settings on the real language model, dpq's too, by bytes."""
    points = []
    for row in newest(folder / "language_model.jsonl"):
        spec, values = row["spec"], row["results"]
        if {key: spec.get(key) for key in REAL} == REAL:
            text, setting = "--no-data" not in spec["options"], f"`{spec['options']}`"
            quality = values["bytes"], values["perplexity"], values["cpu_seconds"]
            points.append(Point(OWN, setting, text, *quality))
    for row in worked(read_rows(folder).get(REAL["model"], [])):
        values, looks = row["results"], _looks(row) == "yes"
        for ends, said in (("", ""), ("_embedding_8", ", embedding at 8 bits")):
            if f"perplexity{ends}" in values:
                quality = values[f"weight_bytes{ends}"], values[f"perplexity{ends}"]
                setting = _setting(row) + said
                points.append(Point(_name(row), setting, looks, *quality, values["cpu_seconds"]))
    return sorted(points, key=lambda point: (point.nbytes, point.perplexity))


def real(folder: Path) -> Iterator[str]:
    """Perplexity of the real language model by bytes, and what failed."""
    found = points(folder)
    own = [point for point in found if point.dpq]
    peers = [point for point in found if not point.dpq]
    best = {point: _best(own, point.nbytes) for point in peers}
    ahead = sum(b is not None and b.perplexity < p.perplexity for p, b in best.items())
    if peers:
        yield (
            f"At the size of a setting or less, dpq has the lower perplexity beside {ahead} of the "
            f"{len(peers)} settings of other tools."
        )
    else:
        yield "No other tool has a record here yet."
    yield ""
    yield "| | setting | on disk | perplexity | dpq at most as large | reads text | CPU seconds |"
    yield "|---|---|---:|---:|---:|---|---:|"
    for point in found:
        rival = best.get(point)
        other = f"{rival.perplexity:.2f} in {rival.nbytes / 1e6:.1f} MB" if rival else ""
        if rival and rival.perplexity < point.perplexity:
            other = f"**{other}**"
        looks = "yes" if point.text else "no"
        yield f"{point.cells()} {other} | {looks} | {point.seconds:.0f} |"
    failed = [r for r in read_rows(folder).get(REAL["model"], []) if "failed" in r["results"]]
    if failed:
        yield ""
        yield "What did not work, and what the tool said:"
        yield ""
    for row in failed:
        yield f"* {_name(row)}, {_setting(row)}: `{row['results']['failed']}`"


def short(folder: Path) -> Iterator[str]:
    """The settings of each tool that no other of its own beats at its size, on the real model."""
    yield "| | setting | on disk | perplexity |"
    yield "|---|---|---:|---:|"
    found = points(folder)
    for point in found:
        same = [other for other in found if other.name == point.name]
        if _best(same, point.nbytes) is point:
            yield point.cells()


def _best(among: list[Point], nbytes: int) -> Point | None:
    """The one of the lowest perplexity in at most a number of bytes."""
    fitting = (point for point in among if point.nbytes <= nbytes)
    return min(fitting, key=lambda point: point.perplexity, default=None)


def llama(rows: list[Row]) -> Iterator[str]:
    """Perplexity by bytes."""
    yield "| | setting | looks at text | bytes | perplexity | seconds |"
    yield "|---|---|---|---:|---:|---:|"
    for row in sorted(rows, key=_nbytes):
        found = row["results"]
        value = found.get("perplexity_embedding_4", found["perplexity"])
        yield (
            f"| {_name(row)} | {_setting(row)} | {_looks(row)} | {_nbytes(row):,} | {value:.2f} "
            f"| {_seconds(row)} |"
        )


def dit(rows: list[Row]) -> Iterator[str]:
    """PSNR by bytes."""
    yield "| | setting | looks at data | bytes | without copies | PSNR | seconds |"
    yield "|---|---|---|---:|---:|---:|---:|"
    for row in sorted(rows, key=_nbytes):
        found = row["results"]
        yield (
            f"| {_name(row)} | {_setting(row)} | {_looks(row)} | {_nbytes(row):,} "
            f"| {found.get('distinct_bytes', _nbytes(row)):,} | {found['psnr_dB']:.1f} dB "
            f"| {_seconds(row)} |"
        )


def _nbytes(row: Row) -> int:
    """Of the weights' files; of peers on the LLaMA, with the embedding at 4 bits."""
    found = row["results"]
    return int(found.get("weight_bytes_embedding_4", found["weight_bytes"]))


def _seconds(row: Row) -> str:
    seconds = row["results"]["seconds"]
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _looks(row: Row) -> str:
    spec = row["spec"]
    return "yes" if spec["peer"] in CALIBRATED or spec.get("preset") == "best" else "no"


def _name(row: Row) -> str:
    peer = row["spec"]["peer"]
    if peer == "dpq":
        preset = row["spec"]["preset"]
        return f"**dpq `{RENAMED.get(preset, preset)}`**"
    return NAMES[peer]


def _setting(row: Row) -> str:
    spec = row["spec"]
    if spec["peer"] == "dpq":
        # Records of 2026-11-21 say "steps"; on the DiT these are the sampler's.
        taken = spec.get("calibration_steps", None if "images" in spec else spec.get("steps"))
        steps = "" if taken is None else f" --steps {taken}"
        return f"`--target-size {spec['target_size'] / 1e6:g}MB{steps}`"
    said = [f"{name}={value}" for name, value in spec["options"].items()]
    named = spec.get("width") or f"{spec['bits']} bits, groups of {spec['group']}"
    return ", ".join((named, *said))


def text_of(folder: Path) -> str:
    """Everything between the two marks of docs/peers.md."""
    rows = read_rows(folder)
    parts = ["### SmolLM2-135M-Instruct", "", *real(folder), ""]
    parts += ["### builtin:tiny-llama", "", *llama(worked(rows["tiny-llama"])), ""]
    parts += ["### builtin:tiny-dit", "", *dit(worked(rows["tiny-dit"])), ""]
    return "\n".join(parts)


def short_of(folder: Path) -> str:
    """Everything between the two marks of README.md."""
    return "\n".join([*short(folder), ""])


def write(folder: Path = RESULTS) -> None:
    """Write the parts of the pages between their marks."""
    write_part("peers.md", "peers_tables.py", text_of(folder))
    write_part("../README.md", "peers_tables.py", short_of(folder))


def main() -> None:
    """Write the parts of the pages from the records of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    write(parser.parse_args().results)


if __name__ == "__main__":
    main()
