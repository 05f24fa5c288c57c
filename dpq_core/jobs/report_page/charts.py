"""Charts as inline SVG, coloured by the page's style: stacked bars, dots, and a scatter plot.

Every chart has a title and a description for screen readers, and every mark a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dpq_core.sizes import format_size

WIDTH, HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 14, 42
COLOURS = 8
"""Colours of the page's style; kinds beyond them share the last one."""

_LETTER, _STEP = 6.6, 12.0
"""Width of a letter and height of a label, about."""

_NAMED = 8
"""Up to this many dots have their names beside them."""

_NARROWEST = 0.4
"""Smallest range of a logarithmic axis, in powers of ten."""


@dataclass(frozen=True)
class Point:
    """A mark of a chart: where it is, and what is said of it.

    Attributes:
        x: horizontal value.
        y: vertical value.
        label: name of the mark.
        colour: number of its colour.
    """

    x: float
    y: float
    label: str
    colour: int = 0


def colour_of(kinds: Sequence[str]) -> dict[str, int]:
    """The colour of each kind, the same in all charts of an artifact."""
    return {kind: min(i, COLOURS - 1) for i, kind in enumerate(kinds)}


def share_bar(parts: Mapping[str, int], colours: Mapping[str, int], title: str) -> str:
    """One bar that shows how bytes are shared out."""
    total = max(1, sum(parts.values()))
    x, marks = 0.0, []
    for name, size in parts.items():
        width = WIDTH * size / total
        text = f"{name}: {format_size(size)}, {100 * size / total:.1f} %"
        marks.append(_rect(x, 0, width, 28, colours[name], text))
        x += width
    return _svg(title, _listed(parts), marks, height=28)


def block_bars(
    blocks: Mapping[str, Mapping[str, int]], colours: Mapping[str, int], title: str
) -> str:
    """A stacked bar of bytes for every block."""
    top = max((sum(parts.values()) for parts in blocks.values()), default=1)
    scale, marks = _Scale.linear(0, top), []
    marks += _y_axis(scale, format_size)
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(blocks))
    for i, (block, parts) in enumerate(blocks.items()):
        y = float(HEIGHT - _BOTTOM)
        for name in colours:
            if size := parts.get(name, 0):
                height = (HEIGHT - _TOP - _BOTTOM) * size / max(1, scale.high)
                y -= height
                text = f"{block}, {name}: {format_size(size)}"
                x = _LEFT + i * step
                marks.append(_rect(x, y, max(1.0, step * 0.86), height, colours[name], text))
    marks.append(_text(WIDTH / 2, HEIGHT - 8, "blocks in the order of the model", "middle"))
    totals = {block: sum(parts.values()) for block, parts in blocks.items()}
    return _svg(title, _listed(totals), marks)


def dots(points: Sequence[Point], title: str, unit: str, x_name: str) -> str:
    """Values over a running number, such as the error of every layer."""
    high = max((point.y for point in points), default=1.0)
    scale = _Scale.linear(0, high or 1.0)
    across = _Scale(0, max(1.0, max((p.x for p in points), default=1.0)))
    marks = _y_axis(scale, lambda value: f"{value:.3g}")
    marks += [_circle(across.x(p.x), scale.y(p.y), p, f"{p.y:.4g} {unit}", 3.2) for p in points]
    if len(points) <= _NAMED:
        marks += _labels([(across.x(p.x), scale.y(p.y), p.label) for p in points])
    marks.append(_text(WIDTH / 2, HEIGHT - 8, x_name, "middle"))
    values = [p.y for p in points]
    mean = sum(values) / max(1, len(values))
    said = f"{len(values)} values, mean {mean:.4g}, largest {high:.4g} {unit}"
    return _svg(title, said, marks)


def scatter(points: Sequence[Point], title: str, y_name: str) -> str:
    """Quality over bytes, with bytes on a logarithmic axis and a label at every point."""
    xs, ys = [math.log10(max(1.0, p.x)) for p in points], [p.y for p in points]
    span = max(xs) - min(xs)
    pad = max(0.1 * span, (_NARROWEST - span) / 2)
    across = _Scale(min(xs) - pad, max(xs) + pad)
    spread = (max(ys) - min(ys)) or abs(max(ys)) or 1.0
    scale = _Scale.linear(min(ys) - 0.1 * spread, max(ys) + 0.1 * spread)
    marks = _y_axis(scale, lambda value: f"{value:.4g}")
    for power in range(math.floor(across.low), math.ceil(across.high) + 1):
        for digit in (1, 2, 5) if span > 1 else (1, 1.5, 2, 3, 5, 7):
            at = power + math.log10(digit)
            if across.low <= at <= across.high:
                x = across.x(at)
                marks.append(_line(x, _TOP, x, HEIGHT - _BOTTOM))
                size = format_size(round(10**at))
                marks.append(_text(x, HEIGHT - _BOTTOM + 14, size, "middle"))
    places = [(across.x(at), scale.y(p.y), p.label) for p, at in zip(points, xs, strict=True)]
    for p, (x, y, _) in zip(points, places, strict=True):
        marks.append(_circle(x, y, p, f"{format_size(round(p.x))}, {p.y:.5g}", 6))
    marks += _labels(places)
    marks.append(_text(WIDTH / 2, HEIGHT - 8, f"size on disk; upwards: {y_name}", "middle"))
    said = "; ".join(f"{p.label}: {format_size(round(p.x))}, {p.y:.5g}" for p in points)
    return _svg(title, said, marks)


@dataclass(frozen=True)
class _Scale:
    """The range of an axis."""

    low: float
    high: float

    @classmethod
    def linear(cls, low: float, high: float) -> _Scale:
        """A range that is not empty."""
        return cls(low, high if high > low else low + 1)

    def x(self, value: float) -> float:
        """The place of a value on the horizontal axis, in units of the picture."""
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - self.low) / (self.high - self.low)

    def y(self, value: float) -> float:
        """The place of a value on the vertical axis."""
        span = HEIGHT - _TOP - _BOTTOM
        return HEIGHT - _BOTTOM - span * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """About four round values."""
        raw = (self.high - self.low) / 4
        base = 10.0 ** math.floor(math.log10(raw))
        step = next(base * m for m in (1, 2, 2.5, 5, 10) if base * m >= raw)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def _y_axis(scale: _Scale, shown: Callable[[float], str]) -> list[str]:
    marks = []
    for value in scale.ticks():
        y = scale.y(value)
        marks.append(_line(_LEFT, y, WIDTH - _RIGHT, y))
        marks.append(_text(_LEFT - 6, y + 4, shown(value), "end"))
    return marks


def _rect(x: float, y: float, width: float, height: float, colour: int, text: str) -> str:
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="c{colour}" {box}><title>{escape(text)}</title></rect>'


def _circle(x: float, y: float, point: Point, value: str, radius: float) -> str:
    title = f"<title>{escape(f'{point.label}: {value}')}</title>"
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}"'
    return f'<circle class="c{point.colour}" {place}>{title}</circle>'


def _labels(places: Sequence[tuple[float, float, str]]) -> list[str]:
    """Labels beside points: at the right, at the left near the edge, moved off other labels.

    Args:
        places: x, y and label of every point, in units of the picture.
    """
    marks: list[str] = []
    taken = [(x - 7, x + 7, y) for x, y, _ in places]
    for x, y, label in sorted(places, key=lambda place: place[1]):
        width = _LETTER * len(label)
        left = x + 9 + width > WIDTH
        begin, end = (x - 9 - width, x - 9) if left else (x + 9, x + 9 + width)
        steps = (0, -_STEP, _STEP, -2 * _STEP, 2 * _STEP, 3 * _STEP)
        free = (
            y + step
            for step in steps
            if _TOP < y + step < HEIGHT - _BOTTOM
            and all(b < begin or a > end or abs(y + step - at) >= _STEP for a, b, at in taken)
        )
        place = next(free, y)
        taken.append((begin, end, place))
        marks.append(_text(x - 9 if left else x + 9, place + 4, label, "end" if left else "start"))
    return marks


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _listed(sizes: Mapping[str, int]) -> str:
    return "; ".join(f"{name}: {format_size(size)}" for name, size in sizes.items())


def _svg(title: str, description: str, marks: Sequence[str], *, height: int = HEIGHT) -> str:
    said = escape(f"{title}. {description}", quote=True)
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{said}">'
    return head + "".join(marks) + "</svg>"
