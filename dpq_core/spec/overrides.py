"""Overrides: rules that change the spec of the tensors whose name matches a pattern.

They come from the user, from a preset and from an adapter.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dpq_core.errors import SpecError
from dpq_core.spec.changes import parse_changes
from dpq_core.spec.quant_spec import PRESET_D, QuantSpec


@dataclass(frozen=True)
class Override:
    """A rule that changes the spec of the tensors whose name matches, or keeps them uncompressed.

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
            return cls(pattern, {"bits": int(value)})
        changes = parse_changes(value)
        QuantSpec().replace(**changes)
        return cls(pattern, changes)

    def matches(self, name: str) -> bool:
        """Whether the pattern matches the name of a tensor."""
        return fnmatch.fnmatchcase(name, self.pattern)

    def apply(self, spec: QuantSpec) -> QuantSpec | None:
        """The changed spec, or None to keep the tensor."""
        return None if self.changes is None else spec.replace(**self.changes)


def apply_overrides(name: str, spec: QuantSpec, rules: Iterable[Override]) -> QuantSpec | None:
    """The spec of one tensor after all rules, the last of which wins; None keeps the tensor."""
    changed_spec: QuantSpec | None = spec
    for rule in rules:
        if rule.matches(name):
            changed_spec = rule.apply(changed_spec or spec)
    return changed_spec
