"""Colours of backgrounds, by name or as ``#rrggbb``."""

from __future__ import annotations

from dpq_core.errors import SpecError

BACKGROUNDS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "grey": (0.5, 0.5, 0.5)}


def colour(text: str) -> tuple[float, float, float]:
    """Parses a colour name or ``#rrggbb`` to red, green and blue in [0, 1].

    Raises:
        SpecError: it is neither.
    """
    if text in BACKGROUNDS:
        return BACKGROUNDS[text]
    digits = text.removeprefix("#")
    try:
        if len(digits) != 6:
            raise ValueError
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        message = f"is no colour; use {', '.join(BACKGROUNDS)} or #rrggbb"
        raise SpecError(message, option="background", value=text) from None
    return red / 255, green / 255, blue / 255
