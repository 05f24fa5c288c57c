"""The count of the Gaussians whose values a format cannot hold, by attribute."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class Clipped:
    """Counts of Gaussians whose values were moved to what a format can hold."""

    def __init__(self, name: str) -> None:
        """Begin with none.

        Args:
            name: the format, for the note.
        """
        self._name = name
        self._counts: dict[str, int] = {}

    def count(
        self, attribute: str, values: npt.NDArray[np.floating], low: float, high: float
    ) -> None:
        """Counts the Gaussians with a value below ``low`` or above ``high``.

        Args:
            attribute: its name.
            values: ``[n, ...]``.
            low: lowest value that the format holds.
            high: highest value that the format holds.
        """
        if not values.size or (float(values.min()) >= low and float(values.max()) <= high):
            return
        outside = (values < low) | (values > high)
        number = int(outside.reshape(len(values), -1).any(axis=1).sum())
        self._counts[attribute] = self._counts.get(attribute, 0) + number

    def notes(self) -> tuple[str, ...]:
        """One line that names the attributes, if anything was clipped."""
        if not self._counts:
            return ()
        parts = ", ".join(f"{name} of {n:,}" for name, n in self._counts.items())
        return (f"clipped to what {self._name} can hold: {parts} Gaussians",)
