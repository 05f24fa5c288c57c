"""The tables of docs/peers.md, from the newest record of every setting of every peer.

python benchmarks/peers_tables.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pages import write_part
from record import RESULTS

CALIBRATED = ("autoround", "gptqmodel")
"""Peers that look at text; of dpq, the preset ``best`` does."""

NAMES = {
    "hqq": "HQQ",
    "quanto": "optimum-quanto",
    "autoround": "AutoRound",
    "gptqmodel": "GPTQModel",
    "sdnq": "SDNQ",
}

RENAMED = {"fast": "--no-data"}
"""Presets of older records -> the option that stands for them today."""

Row = Mapping[str, Any]


def read_rows(folder: Path) -> dict[str, list[Row]]:
    """The newest record of every setting, by model; those that failed are left out."""
    newest: dict[str, Row] = {}
    for line in (folder / "peers.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        newest[json.dumps(record["spec"], sort_keys=True)] = record
    models: dict[str, list[Row]] = {}
    for record in newest.values():
        if "failed" not in record["results"]:
            model = record["spec"]["model"].removeprefix("builtin:")
            models.setdefault(model, []).append(record)
    return models


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
    what = (
        [spec["width"]] if "width" in spec else [f"{spec['bits']} bits, groups of {spec['group']}"]
    )
    return ", ".join((*what, *said))


def main() -> None:
    """Write the part of the page between the marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    rows = read_rows(parser.parse_args().results)
    parts = ["### builtin:tiny-llama", "", *llama(rows["tiny-llama"]), ""]
    parts += ["### builtin:tiny-dit", "", *dit(rows["tiny-dit"]), ""]
    write_part("peers.md", "peers_tables.py", "\n".join(parts))


if __name__ == "__main__":
    main()
