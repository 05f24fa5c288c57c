"""Rate against fidelity of splat codecs as an SVG: one panel per scene."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

FAMILIES = {
    "dpq": "#d1495b",
    "dpq with poses": "#edae49",
    "SPZ": "#00798c",
    "SOG": "#30638e",
    "compressed.ply": "#6a994e",
    "VQ": "#8d7b94",
}
"""Family -> colour. Lossless files lie far to the right and are left out."""

WIDTH, HEIGHT = 400, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 30, 40
_LEGEND = 34
_TICKS = (4, 5, 7, 10, 14, 20, 30, 45, 65)  # bytes per Gaussian


def plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Bytes per Gaussian (logarithmic) against fidelity, two panels in a row."""
    scenes = list(dict.fromkeys(row["scene"] for row in rows))
    lines = -(-len(scenes) // 2)
    width, height = 2 * WIDTH, lines * HEIGHT + _LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for at, scene in enumerate(scenes):
        panel = _panel(scene, [row for row in rows if row["scene"] == scene])
        x, y = at % 2 * WIDTH, at // 2 * HEIGHT + _LEGEND
        parts.append(f'<g transform="translate({x} {y})">{panel}</g>')
    used = [name for name in FAMILIES if any(row["family"] == name for row in rows)]
    for at, name in enumerate(used):
        x = 50 + 120 * at
        parts.append(_dot(x, 18, name) + _text(x + 10, 22, name))
    return "\n".join([*parts, "</svg>", ""])


def fidelity(row: Mapping[str, Any]) -> float:
    """Mean PSNR to the original: of the held-out views where there are any, else of the rig."""
    value: float = row.get("held_out_psnr_dB", row["rig_psnr_dB"])
    return value


def _panel(scene: str, rows: Sequence[Mapping[str, Any]]) -> str:
    points = [
        (row["family"], row["bytes"] / row["gaussians"], fidelity(row))
        for row in rows
        if row["family"] in FAMILIES
    ]
    rates, levels = [p[1] for p in points], [p[2] for p in points]
    left, right = min(rates) / 1.15, max(rates) * 1.15
    step = 5 if max(levels) - min(levels) <= 25 else 10  # dB
    low = step * math.floor(min(levels) / step - 0.1)
    high = step * math.ceil(max(levels) / step + 0.1)

    def x(rate: float) -> float:
        share = math.log(rate / left) / math.log(right / left)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(level: float) -> float:
        return round(HEIGHT - _BOTTOM - (level - low) / (high - low) * _inner(), 1)

    views = "held-out views" if "held_out_psnr_dB" in rows[0] else "rig"
    drawn = [_text(_LEFT, 18, f"{scene} ({views})", weight="bold")]
    for level in range(low, high + 1, step):
        drawn.append(_line(_LEFT, y(level), WIDTH - _RIGHT, y(level), "#dddddd"))
        drawn.append(_text(_LEFT - 6, y(level) + 4, f"{level}", anchor="end"))
    for rate in _TICKS:
        if left <= rate <= right:
            drawn.append(_line(x(rate), _TOP, x(rate), HEIGHT - _BOTTOM, "#eeeeee"))
            drawn.append(_text(x(rate), HEIGHT - _BOTTOM + 16, f"{rate}", anchor="middle"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    drawn.append(_text(middle, HEIGHT - 6, "bytes per Gaussian", anchor="middle"))
    drawn.append(_text(_LEFT - 30, _TOP - 12, "dB"))
    for family, colour in FAMILIES.items():
        mine = sorted((x(rate), y(level)) for name, rate, level in points if name == family)
        path = " ".join(f"{a},{b}" for a, b in mine)
        drawn.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        drawn += [_dot(a, b, family) for a, b in mine]
    return "".join(drawn)


def _inner() -> int:
    return HEIGHT - _TOP - _BOTTOM


def _dot(x: float, y: float, family: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="4" fill="{FAMILIES[family]}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}" fill="#333333">'
        f"{escape(text)}</text>"
    )
