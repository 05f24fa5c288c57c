"""The page of a report: what its template shows, and the peers that the user adds."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpq_core.errors import SpecError
from dpq_core.jobs.compare_report import CompareReport
from dpq_core.jobs.report_page import charts
from dpq_core.jobs.report_page.charts import Point
from dpq_core.jobs.report_page.contents import Contents, Layer
from dpq_core.jobs.report_page.texts import differences
from dpq_core.plugin.results import RatedText
from dpq_core.sizes import format_size, parse_size
from dpq_core.version import __version__

_TEMPLATE = Path(__file__).with_name("page.html.j2")

_MEDIA = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}
"""Suffix of a picture -> its media type."""

_MOST_PICTURES = 4
"""Pictures of one model in the page."""

_MOST_BYTES = 6_000_000
"""Bytes of one picture in the page; larger ones are left out."""

_WORST = 5
"""Pieces of a rated text that are named with their numbers."""

_BASELINE, _MODEL, _PEER = 1, 0, 2
"""Colours of the points of a scatter plot."""


@dataclass(frozen=True)
class Peer:
    """A point that the user adds to the plots, such as another method's result.

    Attributes:
        name: its name.
        nbytes: its size in bytes.
        values: metric -> value.
    """

    name: str
    nbytes: int
    values: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Read ``NAME,SIZE,METRIC=VALUE,...``, such as ``GPTQ 4 bit,120MB,perplexity=21.5``.

        Raises:
            SpecError: the text is not of this form.
        """
        name, *rest = (word.strip() for word in text.split(","))
        try:
            values = {k.strip(): float(v) for k, v in (word.split("=") for word in rest[1:])}
            size = parse_size(rest[0])
        except (ValueError, IndexError, SpecError):
            values = {}
        if not values:
            raise SpecError("is not NAME,SIZE,METRIC=VALUE", option="peer", value=text)
        return cls(name, size, values)


@dataclass(frozen=True)
class Evidence:
    """Samples to look at: texts, beside those of the baseline, and pictures.

    Attributes:
        texts: the model's texts.
        baseline_texts: the baseline's text to each of ``texts``, or none.
        files: files, of which pictures are shown.
        problem: why there are no samples; empty where there are.
    """

    texts: tuple[str, ...] = ()
    baseline_texts: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """The part of a page about models of one domain.

    Attributes:
        title: its heading.
        comparison: what was measured; None where nothing was.
        contents: the artifacts.
        evidence: path of an artifact -> its samples.
        peers: points that the user adds.
    """

    title: str
    comparison: CompareReport | None
    contents: tuple[Contents, ...]
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    peers: tuple[Peer, ...] = ()


def render(title: str, chapters: Sequence[Chapter]) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    parts = [_chapter(chapter, i) for i, chapter in enumerate(chapters)]
    return template.render(title=title, chapters=parts, version=__version__) + "\n"


def _chapter(chapter: Chapter, number: int) -> dict[str, Any]:
    report = chapter.comparison
    texts = {}
    if report is not None:
        texts = {
            str(Path(row.measured.source)): text
            for row in report.rows
            if (text := row.measured.evaluation.text) is not None
        }
    artifacts = [
        _artifact(contents, chapter.evidence.get(contents.path)) for contents in chapter.contents
    ]
    for i, artifact in enumerate(artifacts):
        artifact["id"] = f"artifact-{number}-{i}"
        artifact["rated"] = _rated(texts, artifact["path"])
    return {
        "id": f"chapter-{number}",
        "title": chapter.title,
        "table": None if report is None else report.tables()[0],
        "remarks": () if report is None else report.remarks(),
        "plots": () if report is None else _plots(report, chapter.peers),
        "peers": chapter.peers,
        "artifacts": artifacts,
        "size": format_size,
    }


def _rated(texts: Mapping[str, RatedText], path: str) -> dict[str, Any] | None:
    """A text as pieces with their numbers and strengths of colour, on one scale for all models."""
    if path not in texts:
        return None
    text = texts[path]
    numbers = sorted(value for other in texts.values() for _, value in other.pieces)
    full = numbers[int(0.95 * (len(numbers) - 1))] or 1.0  # one wild token fades no other
    words = [(piece, value, min(1.0, max(0.0, value) / full)) for piece, value in text.pieces]
    worst = sorted(text.pieces, key=lambda piece: -piece[1])[:_WORST]
    return {
        "name": text.name,
        "full": full,
        "words": words,
        "worst": [(piece.strip() or "space", value) for piece, value in worst],
    }


def _plots(report: CompareReport, peers: Sequence[Peer]) -> list[dict[str, str]]:
    """A plot of quality over bytes for each metric of the table."""
    plots = []
    for name in report.shown:
        points = []
        for row in report.rows:
            metric = row.measured.metric(name)
            if metric is None or not math.isfinite(metric.value):
                continue
            source = row.measured.source
            colour = _BASELINE if source == report.baseline else _MODEL
            label = Path(source).name
            points.append(Point(row.measured.nbytes, metric.value, label, colour))
        points += [
            Point(p.nbytes, p.values[name], p.name, _PEER) for p in peers if name in p.values
        ]
        if len(points) > 1:
            better = "higher" if report.metrics()[name].higher_is_better else "lower"
            title = f"{name} ({better} is better)"
            plots.append({"title": title, "svg": charts.scatter(points, title, name)})
    return plots


def _artifact(contents: Contents, evidence: Evidence | None) -> dict[str, Any]:
    colours = charts.colour_of(tuple(contents.parts))
    layers = contents.layers
    plotted: list[tuple[str, str, Callable[[Layer], float | None]]] = [
        ("Error by layer", "relative error", lambda layer: layer.error),
        (f"Bits per {contents.unit} by layer", "bits", lambda layer: layer.bits),
        ("Entropy of the codes by layer", "bits", lambda layer: layer.entropy),
    ]
    plots: list[dict[str, Any]] = []
    for title, unit, value in plotted:
        points = [
            Point(i, number, layer.name, int(layer.error is None))
            for i, layer in enumerate(layers)
            if (number := value(layer)) is not None
        ]
        if points:
            svg = charts.dots(points, title, unit, "layers in the order of the model")
            kept = any(point.colour for point in points)
            plots.append({"title": title, "svg": svg, "kept": kept})
    return {
        "path": contents.path,
        "name": Path(contents.path).name,
        "facts": contents.facts,
        "parts": [
            (name, colours[name], size, 100 * size / max(1, contents.nbytes))
            for name, size in contents.parts.items()
        ],
        "bar": charts.share_bar(contents.parts, colours, "Bytes by part"),
        "blocks": charts.block_bars(contents.blocks, colours, "Bytes by block")
        if len(contents.blocks) > 1
        else None,
        "plots": plots,
        "usage": _usage(layers),
        "layers": layers,
        "unit": contents.unit,
        "evidence": None if evidence is None else _evidence(evidence),
    }


def _usage(layers: Sequence[Layer]) -> str | None:
    """A sentence on how codewords are used; None where there are none."""
    used = [x for x in layers if x.entropy is not None and x.code_bits and x.unused is not None]
    if not used:
        return None
    shares = [(x.entropy or 0) / (x.code_bits or 1) for x in used]
    unused = sum(x.unused or 0 for x in used) / len(used)
    worst = min(used, key=lambda x: (x.entropy or 0) / (x.code_bits or 1))
    return (
        f"The codes of {len(used)} layers carry {100 * sum(shares) / len(used):.1f} % of the bits "
        f"that they take, on average; {100 * unused:.2f} % of the codewords are named by no code. "
        f"The least even layer is {worst.name}: {worst.entropy:.2f} of {worst.code_bits} bits."
    )


def _evidence(evidence: Evidence) -> dict[str, Any]:
    pictures: list[dict[str, str]] = []
    left_out = []
    for path in evidence.files:
        kind = _MEDIA.get(path.suffix.lower())
        if kind is None or len(pictures) == _MOST_PICTURES or path.stat().st_size > _MOST_BYTES:
            left_out.append(path.name)
            continue
        data = base64.b64encode(path.read_bytes()).decode()
        pictures.append({"name": path.stem, "src": f"data:image/{kind};base64,{data}"})
    pairs = zip(evidence.baseline_texts, evidence.texts, strict=False)
    return {
        "pairs": [differences(before, after) for before, after in pairs],
        "texts": () if evidence.baseline_texts else evidence.texts,
        "pictures": pictures,
        "left_out": left_out,
        "problem": evidence.problem,
    }
