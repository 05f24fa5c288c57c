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
        looks = "yes" if _looks(row) else "no"
        yield (
            f"| {_name(row)} | {_setting(row)} | {looks} | {_nbytes(row):,} | {value:.2f} "
            f"| {found['seconds']:.0f} |"
        )


def dit(rows: list[Row]) -> Iterator[str]:
    """PSNR by bytes."""
    yield "| | setting | bytes | PSNR to the uncompressed | seconds |"
    yield "|---|---|---:|---:|---:|"
    for row in sorted(rows, key=_nbytes):
        found = row["results"]
        yield (
            f"| {_name(row)} | {_setting(row)} | {_nbytes(row):,} | {found['psnr_dB']:.1f} dB "
            f"| {found['seconds']:.0f} |"
        )


def _nbytes(row: Row) -> int:
    """Of the weights' files, so that a peer is not charged for what dpq stores otherwise."""
    found = row["results"]
    best = found.get("weight_bytes_embedding_4", found["weight_bytes"])
    return int(min(best, found.get("distinct_bytes", best)))


def _looks(row: Row) -> bool:
    spec = row["spec"]
    return spec["peer"] in CALIBRATED or spec.get("preset") == "best"


def _name(row: Row) -> str:
    peer = row["spec"]["peer"]
    return f"**dpq `{row['spec']['preset']}`**" if peer == "dpq" else NAMES[peer]


def _setting(row: Row) -> str:
    spec = row["spec"]
    if spec["peer"] == "dpq":
        steps = "" if spec.get("steps") is None else f" --steps {spec['steps']}"
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
