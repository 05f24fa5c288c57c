"""Plan: which spec for which tensor, and exactly how many bytes that will take."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dpq_core.checkpoint import Checkpoint, TensorInfo
from dpq_core.errors import SpecError
from dpq_core.hidden.axes import HiddenAxis, free_axes
from dpq_core.layout import Layout
from dpq_core.partition import Partition
from dpq_core.pq_tensor import Part, expected_parts
from dpq_core.spec import PRESET_D, QuantSpec, parse_changes

if TYPE_CHECKING:
    from dpq_core.adapter import Adapter


@dataclass(frozen=True)
class Override:
    """Change the spec of the tensors whose name matches a pattern, or keep them uncompressed.

    Attributes:
        pattern: shell pattern on the tensor name, e.g. ``model.layers.0.*``.
        changes: fields of QuantSpec to change; None keeps the tensor as it is.
    """

    pattern: str
    changes: Mapping[str, Any] | None = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Override:
        """Read ``PATTERN=keep``, ``PATTERN=4`` (bits) or ``PATTERN=d=2,K=1024,scope=tensor``.

        Raises:
            SpecError: the text has none of these forms, or names an unknown field.
        """
        pattern, _, value = text.partition("=")
        if not pattern or not value:
            raise SpecError(f"override {text!r}: write PATTERN=keep, PATTERN=4 or PATTERN=d=2,K=64")
        if value == "keep":
            return cls(pattern, None)
        if value.isdigit():
            if int(value) not in PRESET_D:
                raise SpecError(f"override {text!r}: bits must be 1, 2, 3 or 4")
            return cls(pattern, {"d": PRESET_D[int(value)], "K": 256})
        changes = parse_changes(value)
        QuantSpec().replace(**changes)
        return cls(pattern, changes)

    def matches(self, name: str) -> bool:
        """Whether the pattern is that of this tensor."""
        return fnmatch.fnmatchcase(name, self.pattern)

    def apply(self, spec: QuantSpec) -> QuantSpec | None:
        """The changed spec, or None to keep the tensor."""
        return None if self.changes is None else spec.replace(**self.changes)


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """What happens to one tensor.

    Attributes:
        name: of the tensor.
        info: its shape and dtype.
        spec: by which it is stored; None when it is kept.
        partition: all sizes; None when it is kept.
        axis: the hidden axis that its columns are, if they are permuted by reordering that axis.
    """

    name: str
    info: TensorInfo
    spec: QuantSpec | None = None
    partition: Partition | None = None
    axis: HiddenAxis | None = None

    @property
    def own_spec(self) -> QuantSpec | None:
        """The spec without help from other tensors: ``permute`` instead of a reordered axis."""
        if self.spec is None or self.axis is None:
            return self.spec
        return self.spec.replace(permute=True)

    def freed(self, axis: HiddenAxis | None) -> TensorPlan:
        """The plan that does not store its permutation, if it has one, but reorders ``axis``."""
        if axis is None or self.spec is None or not self.spec.permute:
            return self
        return replace(self, spec=self.spec.replace(permute=False), axis=axis)

    def stored(self) -> dict[str, Part]:
        """Stored tensor name -> dtype and shape (FORMAT.md: ``X.codes`` or plain ``X``)."""
        if self.spec is None or self.partition is None:
            return {self.name: (self.info.dtype, self.info.shape)}
        parts = expected_parts(self.partition, self.spec)
        return {f"{self.name}.{part}": value for part, value in parts.items()}

    @property
    def nbytes(self) -> int:
        """Bytes that will be stored, headers apart."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.stored().values())


@dataclass(frozen=True)
class Plan:
    """The plans of all tensors of a checkpoint, in its order."""

    tensors: tuple[TensorPlan, ...]

    def __iter__(self) -> Iterator[TensorPlan]:
        """The tensors in storage order."""
        return iter(self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored per weight over the whole model, kept tensors included."""
        return 8 * self.nbytes / sum(t.info.numel for t in self.tensors)


def make_plan(
    checkpoint: Checkpoint, adapter: Adapter, spec: QuantSpec, overrides: Iterable[Override] = ()
) -> Plan:
    """Decide for every tensor: ``adapter.select``, then its policy, then the user's overrides.

    Later overrides win; they can change or keep a selected tensor, not select a new one.

    Raises:
        SpecError: an override of the user matches no compressible tensor, or does not fit one.
    """
    user = tuple(overrides)
    policy = adapter.overrides(spec)
    plans: list[TensorPlan] = []
    used: set[int] = set()
    for name, info in checkpoint.tensors.items():
        layout = adapter.select(name, info.shape) if info.dtype.is_floating_point else None
        if layout is None:
            plans.append(plan_tensor(name, info, None, None))
            continue
        used |= {index for index, rule in enumerate(user) if rule.matches(name)}
        plans.append(plan_tensor(name, info, layout, decide(name, spec, (*policy, *user))))
    for index, rule in enumerate(user):
        if index not in used:
            raise SpecError(f"override {rule.pattern!r} matches no compressible tensor")
    free = free_axes(adapter.hidden_axes(checkpoint), {plan.name: [plan] for plan in plans})
    return Plan(tuple(plan.freed(free.get(plan.name)) for plan in plans))


def decide(name: str, spec: QuantSpec, rules: Iterable[Override]) -> QuantSpec | None:
    """The spec of one tensor after all rules, the last of which wins; None keeps it."""
    chosen: QuantSpec | None = spec
    for rule in rules:
        if rule.matches(name):
            chosen = rule.apply(chosen or spec)
    return chosen


def plan_tensor(
    name: str, info: TensorInfo, layout: Layout | None, spec: QuantSpec | None
) -> TensorPlan:
    """One tensor; an open orientation becomes the one that takes fewer bytes, else ``input``.

    How codebooks are begun is settled as well, so that an artifact says what was done.

    Raises:
        SpecError: the spec does not fit the tensor.
    """
    if spec is None or layout is None:
        return TensorPlan(name=name, info=info)
    kmeans = spec.kmeans.settled(spec.d, spec.K)
    axes: tuple[str, ...] = (spec.orientation,)
    if spec.orientation == "auto":
        axes = ("input",) if spec.group_scale or spec.permute else ("input", "output")
    try:
        plans = [
            TensorPlan(name=name, info=info, spec=s, partition=Partition.of(info.shape, layout, s))
            for s in (spec.replace(orientation=axis, kmeans=kmeans) for axis in axes)
        ]
    except SpecError as error:
        raise SpecError(f"tensor {name!r} {list(info.shape)}: {error}") from None
    return min(plans, key=lambda plan: plan.nbytes)
