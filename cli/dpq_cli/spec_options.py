"""The options that say how tensors are quantized: those of `dpq compress` and `dpq plan`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from dpq_cli import recipe
from dpq_cli.sizes import parse_size
from dpq_core.errors import SpecError
from dpq_core.spec import INITS, ORIENTATIONS, PRESETS, SCOPES, QuantSpec, parse_changes, preset

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help=f"{', '.join(PRESETS)}: the paper's choices are `faithful`; `best` looks at data.  "
        "[default: fast]",
    ),
]
Bits = Annotated[
    float | None,
    typer.Option(
        "--bits",
        callback=recipe.instead,
        help="1, 2, 3 or 4: the codes of a preset. Any other number, such as 1.75: all bytes of "
        "the artifact over its weights; a planner spreads them.  [default: 2]",
    ),
]
TargetSize = Annotated[
    str | None,
    typer.Option(
        "--target-size",
        callback=recipe.instead,
        help="Bytes of the whole artifact, such as 120MB, planned.",
    ),
]
Dim = Annotated[
    int | None,
    typer.Option("--d", callback=recipe.instead, help="Subvector length; not with --bits."),
]
Codewords = Annotated[int | None, typer.Option("--K", help="Codewords per codebook.")]
Scope = Annotated[
    str | None,
    typer.Option("--scope", help=f"Who shares a codebook: {', '.join(SCOPES)}, or a number."),
]
Orientation = Annotated[
    str | None,
    typer.Option("--orientation", help=f"Axis of the subvectors: {', '.join(ORIENTATIONS)}."),
]
Iterations = Annotated[int | None, typer.Option("--iterations", help="k-means iterations.")]
Init = Annotated[str | None, typer.Option("--init", help=f"First codewords: {', '.join(INITS)}.")]
RowScale = Annotated[
    bool | None, typer.Option("--row-scale/--no-row-scale", help="One scale per output row.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        callback=recipe.added,
        help="Any other field of the spec: stages=2, pool=wkmeans, transform=rht, permute=true, "
        "codebook_dtype=int8, group_scale=true, assignment=ldlq+icm, assignment.sweeps=3. "
        "Repeatable, or several with commas.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        metavar="PATTERN=...",
        callback=recipe.added,
        help="Other settings for some tensors: PATTERN=keep, PATTERN=4 (bits) or "
        "PATTERN=d=2,K=64. Repeatable; later ones win.",
    ),
]
Statistics = Annotated[
    bool | None,
    typer.Option(
        "--statistics/--no-statistics",
        help="Choose codes, and what bytes are spent on, by what the layers make of data.  "
        "[default: with --preset best]",
    ),
]


@dataclass(frozen=True, kw_only=True)
class SpecChoice:
    """What the user said about how tensors are quantized; None where nothing was said."""

    preset: str | None = None
    bits: float | None = None
    target_size: str | None = None
    d: int | None = None
    K: int | None = None
    scope: str | None = None
    orientation: str | None = None
    iterations: int | None = None
    init: str | None = None
    row_scale: bool | None = None
    changes: list[str] | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """The options that were given."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    @property
    def planned(self) -> bool:
        """Whether a planner chooses a spec per tensor for a budget."""
        return self.target_size is not None or (self.bits is not None and self.bits % 1 != 0)

    @property
    def spread(self) -> bool:
        """Whether a planner may spend the bytes of a nominal width otherwise, if there is data."""
        return self.preset == "best" and not self.planned and self.d is None and self.K is None

    @property
    def target_bytes(self) -> int | None:
        """The size that was asked for, in bytes."""
        return None if self.target_size is None else parse_size(self.target_size)

    def statistics(self, wanted: bool | None) -> bool:
        """Whether data is looked at: what the user said of it, or else the preset."""
        return self.preset == "best" if wanted is None else wanted

    def spec(self, seed: int) -> QuantSpec:
        """The spec of all tensors; for a planner, what its candidates have in common.

        Raises:
            SpecError: options that exclude each other, or a value out of range.
        """
        if sum(value is not None for value in (self.bits, self.d, self.target_size)) > 1:
            raise SpecError("give one of --bits, --d and --target-size: each decides d")
        if self.planned and self.K is not None:
            raise SpecError("--K is for the planner to choose; leave it out, or give --d with it")
        if self.planned and self.preset == "faithful":
            raise SpecError("preset faithful has fixed widths: give --bits 1, 2, 3 or 4")
        bits = 2 if self.bits is None or self.planned else int(self.bits)
        spec = preset(self.preset or "fast", bits)
        kmeans = _given({"iterations": self.iterations, "init": self.init})
        values: dict[str, Any] = {
            "d": self.d,
            "K": self.K,
            "scope": _scope(self.scope),
            "seed": seed,
        }
        values |= {"orientation": self.orientation, "row_scale": self.row_scale}
        values["kmeans"] = kmeans or None
        for text in self.changes or []:
            for key, value in parse_changes(text).items():
                nested = isinstance(value, dict) and isinstance(values.get(key), dict)
                values[key] = {**values[key], **value} if nested else value
        return spec.replace(**_given(values))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _scope(text: str | None) -> str | int | None:
    return int(text) if text is not None and text.isdigit() else text
