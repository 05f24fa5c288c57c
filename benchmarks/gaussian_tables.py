"""The tables and the plot of docs/gaussian.md, from the last record of suites/gaussian.py.

python benchmarks/gaussian_tables.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gaussian_plot import fidelity, plot
from pages import DOCS, write_part
from record import RESULTS

Row = Mapping[str, Any]


def last_record(folder: Path) -> dict[str, Any]:
    """The newest line of gaussian.jsonl."""
    lines = (folder / "gaussian.jsonl").read_text(encoding="utf-8").splitlines()
    record: dict[str, Any] = json.loads(lines[-1])
    return record


def text_of(record: Mapping[str, Any]) -> str:
    """Everything between the two marks."""
    rows = record["results"]["rows"]
    scenes = list(dict.fromkeys(row["scene"] for row in rows))
    parts = ["![bytes against fidelity of splat codecs](images/gaussian_rate.svg)", ""]
    parts += ["**Against each rival**, without poses or photographs:", "", *rivals(rows), ""]
    for scene in scenes:
        mine = [row for row in rows if row["scene"] == scene]
        parts += [f"**{scene}**, {mine[0]['gaussians']:,} Gaussians:", "", *table(mine), ""]
    return "\n".join([*parts, *about(record)])


def table(rows: Sequence[Row]) -> Iterator[str]:
    """All files of one scene, the smallest first."""
    held_out = "held_out_psnr_dB" in rows[0]
    heads = ["file", "MB", "bytes per Gaussian", "smaller", "rig"]
    heads += ["held-out views", "photographs"] if held_out else []
    yield "| " + " | ".join([*heads, "encode", "decode"]) + " |"
    yield "|---" + "|---:" * (len(heads) + 1) + "|"
    raw = next(row for row in rows if row["method"].startswith("ply, float32"))
    for row in sorted(rows, key=lambda row: row["bytes"]):
        cells = [row["method"], f"{row['bytes'] / 1e6:.3f}"]
        cells += [f"{row['bytes'] / row['gaussians']:.2f}", f"{raw['bytes'] / row['bytes']:.1f}x"]
        cells.append(_decibels(row["rig_psnr_dB"]))
        if held_out:
            cells.append(_decibels(row["held_out_psnr_dB"]))
            cells.append(_decibels(row["photographs_psnr_dB"]))
        seconds = (row["encode_seconds"], row["decode_seconds"])
        cells += ["-" if value == 0 else f"{value:.2g} s" for value in seconds]
        yield "| " + " | ".join(cells) + " |"


def rivals(rows: Sequence[Row]) -> Iterator[str]:
    """What dpq needs for a rival's fidelity, and what it gives at a rival's size."""
    yield "| scene | rival | MB | fidelity | dpq as faithful | dpq no larger |"
    yield "|---|---|---:|---:|---:|---:|"
    for row in rows:
        if row["family"] in ("dpq", "dpq with poses", "lossless"):
            continue
        ours = [r for r in rows if r["family"] == "dpq" and r["scene"] == row["scene"]]
        better = [r for r in ours if fidelity(r) >= fidelity(row)]
        smaller = [r for r in ours if r["bytes"] <= row["bytes"]]
        cells = [row["scene"], row["method"], f"{row['bytes'] / 1e6:.3f}"]
        cells.append(_decibels(fidelity(row)))
        size = min((r["bytes"] for r in better), default=0)
        cells.append(f"{size / 1e6:.3f} MB, {size / row['bytes']:.2f}x" if size else "-")
        gain = max((fidelity(r) for r in smaller), default=0.0)
        cells.append(f"{gain:.2f} dB, {gain - fidelity(row):+.2f}" if gain else "-")
        yield "| " + " | ".join(cells) + " |"


def about(record: Mapping[str, Any]) -> Iterator[str]:
    """Where the numbers come from."""
    spec, machine = record["spec"], record["machine"]
    yield (
        f"Measured on {machine['cores']} cores ({machine['cpu']}) with {spec['threads']} threads, "
        f"load {machine['load_average']:.1f}: `benchmarks/results/gaussian.jsonl`, "
        f"{record['date'][:10]}. The rig: {spec['rig_views']} views of {spec['rig_size']} x "
        f"{spec['rig_size']} pixels."
    )
    checked = record["results"]["sog_emulation"]
    if checked:
        yield (
            f"Emulated SOG beside splat-transform's own on {checked['gaussians']:,} Gaussians of "
            f"miku_sh3 with a palette of {checked['palette']:,}: "
            f"{checked['ours_bytes']:,} bytes and {checked['ours_psnr_dB']:.2f} dB against "
            f"{checked['theirs_bytes']:,} bytes and {checked['theirs_psnr_dB']:.2f} dB."
        )


def _decibels(value: float) -> str:
    return "same" if value >= 100 else f"{value:.2f} dB"


def main() -> None:
    """Write the plot, and the part of the page between the marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    record = last_record(parser.parse_args().results)
    write_part("gaussian.md", "gaussian_tables.py", text_of(record))
    picture = DOCS / "images" / "gaussian_rate.svg"
    picture.parent.mkdir(exist_ok=True)
    picture.write_text(plot(record["results"]["rows"]), encoding="utf-8")


if __name__ == "__main__":
    main()
