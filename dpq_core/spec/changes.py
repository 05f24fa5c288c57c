"""Changes of a spec as text, such as ``d=2,K=1024,pool=wkmeans``."""

from __future__ import annotations

from typing import Any

from dpq_core.errors import SpecError
from dpq_core.spec.quant_spec import NESTED
from dpq_core.spec.sections import parse_value


def parse_changes(text: str) -> dict[str, Any]:
    """Parse changes of a spec such as ``d=2,K=1024,pool=wkmeans,kmeans.iterations=9``.

    ``pool`` and ``assignment`` without a dot mean their ``method``.

    Raises:
        SpecError: the text has another form.
    """
    changes: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, raw = (part.strip() for part in item.partition("="))
        if not key or not equals or not raw:
            raise SpecError(f"{item!r}: write KEY=VALUE, several with commas between them")
        outer, _, inner = key.partition(".")
        if inner or outer in NESTED:
            changes.setdefault(outer, {})[inner or "method"] = parse_value(raw)
        else:
            changes[key] = parse_value(raw)
    return changes
