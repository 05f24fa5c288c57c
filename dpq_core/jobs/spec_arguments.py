"""Arguments of quantization, and the fields of arguments classes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from dpq_core.errors import ANY, Hint, SpecError
from dpq_core.sizes import parse_size
from dpq_core.spec import INITS, ORIENTATIONS, PRESETS, SCOPES, QuantSpec, parse_changes, preset

SIZES = ("bits", "d", "target_size")
"""Arguments that decide the number of bytes; only one of them can be given."""

SHARD_SIZE = "4GB"

DEVICE = "Torch device; auto takes CUDA where there is one."
SEED = "The only source of randomness."
MODEL = "A model folder or file, a hub id, or builtin:NAME."


def argument(default: Any, help: str, **more: Any) -> Any:
    """A field of an arguments class.

    Args:
        default: default value; None where ``unset`` describes it.
        help: one sentence for the help of the command line and for the docs.
        more: ``unset`` (what None means), ``metavar``, ``minimum``, ``short`` (flag of one letter).
    """
    return field(default=default, metadata={"help": help, **more})


def required(help: str, **more: Any) -> Any:
    """A field without a default; ``positional=True`` makes it an argument without a flag."""
    return field(metadata={"help": help, **more})


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """Arguments of every verb that runs an adapter.

    Attributes:
        sources: the fields that name a model or an artifact, from which the adapter is known.
        verbs: the adapter's verbs whose options can be given too.
    """

    sources: ClassVar[tuple[str, ...]] = ("source",)
    verbs: ClassVar[tuple[str, ...]] = ()

    adapter: str | None = argument(
        None, "The domain of the source; see `dpq adapters`.", short="-a", unset="from SOURCE"
    )
    device: str = argument("auto", DEVICE)
    seed: int = argument(0, SEED, minimum=0)


@dataclass(frozen=True, kw_only=True)
class SpecArguments(RunArguments):
    """Arguments of ``plan`` and ``compress``: how tensors are quantized."""

    verbs: ClassVar[tuple[str, ...]] = ("compress", "calibrate")

    source: str = required(MODEL, positional=True)
    preset: str | None = argument(
        None,
        f"{', '.join(PRESETS)}: `best` plans the bytes and trains for a while, `paper` is DPQ as "
        "it was published.",
        unset="standard",
    )
    bits: float | None = argument(
        None,
        "1, 2, 3 or 4: the codes of a preset. Any other number, such as 1.75: all bytes of the "
        "artifact over its weights; a planner spreads them.",
        unset="2",
    )
    target_size: str | None = argument(
        None, "Bytes of the whole artifact, such as 120MB, planned.", unset="no limit"
    )
    d: int | None = argument(None, "Subvector length; not with --bits.", unset="from --bits")
    K: int | None = argument(None, "Codewords per codebook.", unset="from --bits")
    scope: str | None = argument(
        None, f"Who shares a codebook: {', '.join(SCOPES)}, or a number.", unset="the preset's"
    )
    orientation: str | None = argument(
        None, f"Axis of the subvectors: {', '.join(ORIENTATIONS)}.", unset="the preset's"
    )
    iterations: int | None = argument(None, "k-means iterations.", unset="the preset's")
    init: str | None = argument(None, f"First codewords: {', '.join(INITS)}.", unset="the preset's")
    row_scale: bool | None = argument(None, "One scale per output row.", unset="the preset's")
    set: tuple[str, ...] = argument(
        (),
        "Any other field of the spec: stages=2, pool=wkmeans, transform=rht, permute=true, "
        "codebook_dtype=int8, group_scale=true, assignment=ldlq+icm, assignment.sweeps=3. "
        "Repeatable, or several with commas.",
        metavar="KEY=VALUE",
    )
    override: tuple[str, ...] = argument(
        (),
        "Other settings for some tensors: PATTERN=keep, PATTERN=4 (bits) or PATTERN=d=2,K=64. "
        "Repeatable; later ones win.",
        metavar="PATTERN=...",
    )
    shard_size: str = argument(SHARD_SIZE, "Start a new weight file beyond this size.")
    data: bool | None = argument(
        None,
        "Choose codes, and with a planner bytes, by what the layers make of data. Language models "
        "below 5 bits are not usable without; what they read is `--texts`, or a text that ships. "
        "Diffusion models look at the images that they draw themselves.",
        unset="yes for language models and diffusion transformers, and with --preset best",
    )

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the given arguments that decide how tensors are quantized."""
        names = (f.name for f in fields(SpecArguments) if f.name in _ABOUT_TENSORS)
        return tuple(name for name in names if getattr(self, name) not in (None, ()))

    @property
    def has_budget(self) -> bool:
        """Whether a planner chooses a spec per tensor within a budget of bytes."""
        return self.target_size is not None or (self.bits is not None and self.bits % 1 != 0)

    @property
    def redistributes(self) -> bool:
        """Whether the bytes of a nominal width are distributed by the tensors' sensitivity."""
        return self.preset == "best" and not self.has_budget and self.d is None and self.K is None

    @property
    def target_bytes(self) -> int | None:
        """The target size in bytes; None where none is given."""
        return None if self.target_size is None else parse_size(str(self.target_size))

    def uses_data(self, *, by_default: bool) -> bool:
        """Whether data is looked at while quantizing.

        Args:
            by_default: whether models of the source's domain are quantized with data by default.
        """
        if self.data is not None:
            return self.data
        return self.preset == "best" or (by_default and self.preset != "paper")

    @property
    def _shapes_codebooks(self) -> bool:
        """Whether an argument is about learned codebooks, which a trellis does not have."""
        names = ("d", "K", "scope", "orientation", "iterations", "init")
        keys = {key for text in self.set for key in parse_changes(text)}
        return any(getattr(self, name) is not None for name in names) or bool(
            keys - {"assignment", "trellis_rate", "transform", "row_scale", "seed"}
        )

    def spec(self, *, data: bool, trellis: bool = False) -> QuantSpec:
        """The spec of all tensors, or the spec that a planner's candidates are made from.

        Args:
            data: whether there will be statistics of the inputs.
            trellis: whether presets store trellis codes, unless an argument is about codebooks.

        Raises:
            SpecError: arguments exclude each other, or a value is out of range.
        """
        if sum(getattr(self, name) is not None for name in SIZES) > 1:
            raise SpecError(
                "each decides d",
                Hint.of("give one of {}, {} and {}", bits=ANY, d=ANY, target_size=ANY),
            )
        if self.has_budget and self.K is not None:
            raise SpecError(
                "K is for the planner to choose", Hint.of("leave it out, or give {} with it", d=ANY)
            )
        if self.has_budget and self.preset == "paper":
            raise SpecError(
                "preset paper has fixed widths", Hint.of("give {}: 1, 2, 3 or 4", bits=ANY)
            )
        bits = 2 if self.bits is None or self.has_budget else int(self.bits)
        trellis = trellis and not self._shapes_codebooks
        spec = preset(self.preset or "standard", bits, data=data, trellis=trellis)
        values: dict[str, Any] = {
            "d": self.d,
            "K": self.K,
            "scope": _scope(self.scope),
            "seed": self.seed,
            "orientation": self.orientation,
            "row_scale": self.row_scale,
        }
        kmeans = {"iterations": self.iterations, "init": self.init}
        values["kmeans"] = {
            key: value for key, value in kmeans.items() if value is not None
        } or None
        for text in self.set:
            for key, value in parse_changes(text).items():
                nested = isinstance(value, dict) and isinstance(values.get(key), dict)
                values[key] = {**values[key], **value} if nested else value
        return spec.replace(**{key: value for key, value in values.items() if value is not None})


_ABOUT_TENSORS = (
    *("preset", "bits", "target_size", "d", "K", "scope", "orientation", "iterations", "init"),
    *("row_scale", "set", "override"),
)


def _scope(text: str | int | None) -> str | int | None:
    return int(text) if isinstance(text, str) and text.isdigit() else text
