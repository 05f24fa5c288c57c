"""What a calibration did, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Validated:
    """One validation: the mean loss of the phase's objective on its fixed batches."""

    phase: str
    step: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """One E-step, or the warm start of the codebooks (``what``).

    Attributes:
        phase: in which it happened.
        step: before which M-step of the phase.
        what: ``codes`` or ``codebooks``.
        gradient: codes moved along the loss gradient, not towards the original weights.
        before: loss on the batches that it looked at.
        after: the same afterwards; where it is higher, nothing was kept.
        kept: whether the student has it.
        changed: codes that changed.
        total: codes there are.
        dead: share of codewords without codes.
        perplexity: of the codewords' usage, over their number.
        revived: dead codewords with a new value.
    """

    phase: str
    step: int
    what: str
    before: float
    after: float
    kept: bool
    gradient: bool = False
    changed: int = 0
    total: int = 0
    dead: float = 0.0
    perplexity: float = 1.0
    revived: int = 0


@dataclass(frozen=True, kw_only=True)
class CalibrateReport:
    """What became of a student.

    Attributes:
        loss: what the loss measures.
        before: validation loss before; never below ``after``.
        after: validation loss of what is kept, in the precision in which it is stored.
        baseline: validation loss of the uncompressed model.
        steps: M-steps done, over all phases and runs.
        validations: in order.
        esteps: in order.
        seconds: wall time of this run.
    """

    loss: str
    before: float
    after: float
    baseline: float
    steps: int
    validations: tuple[Validated, ...]
    esteps: tuple[Assigned, ...]
    seconds: float

    @property
    def recovered(self) -> float | None:
        """Share of what compressing lost that came back; None where it had lost nothing."""
        return recovered(self.before, self.after, self.baseline)

    @property
    def changed(self) -> int:
        """Codes that changed, over all E-steps that were kept."""
        return sum(e.changed for e in self.esteps if e.kept)

    @property
    def revived(self) -> int:
        """Codewords that were given a new value, over all E-steps that were kept."""
        return sum(e.revived for e in self.esteps if e.kept)

    @property
    def dead(self) -> float:
        """Share of codewords without codes after the last E-step."""
        return next((e.dead for e in reversed(self.esteps) if e.total and e.kept), 0.0)


def recovered(before: float, now: float, baseline: float) -> float | None:
    """(before - now) / (before - baseline), or None where there is nothing to recover."""
    lost = before - baseline
    return (before - now) / lost if lost > 0 else None


def note(title: str, loss: float, share: float | None, esteps: Sequence[Assigned]) -> str:
    """One line of progress: phase, loss, recovered share, codes changed, dead codewords."""
    parts = [f"{title}: loss {loss:.4g}"]
    if share is not None:
        parts.append(f"{share:.0%} recovered")
    last = next((e for e in reversed(esteps) if e.what == "codes" and e.total), None)
    if last is not None:
        parts.append(f"{last.changed / last.total:.1%} of codes changed")
        parts.append(f"{last.dead:.1%} of codewords dead")
    return ", ".join(parts)
