"""CalibrateReport: the losses, E-steps and validations of a calibration."""

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
        phase: title of the phase.
        step: the M-step of the phase that follows.
        what: ``codes``, ``codebooks`` or ``candidates``.
        gradient: whether codes moved along the loss gradient instead of towards the original
            weights.
        before: loss on the batches of the E-step before it.
        after: loss on them after it; where it is higher, the change was taken back.
        kept: whether the change was kept.
        changed: number of codes that changed.
        total: number of codes.
        dead: share of codewords without codes, 0..1.
        perplexity: perplexity of the codewords' usage over their number, 0..1.
        revived: number of dead codewords that were replaced.
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
    """The result of a calibration.

    Attributes:
        loss: name of the loss.
        before: validation loss before; never below ``after``.
        after: validation loss of the student that is kept, rounded as it is stored.
        baseline: validation loss of the uncompressed model.
        steps: number of M-steps over all phases and runs.
        validations: all validations, in order.
        esteps: all E-steps, in order.
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
        """Share of the loss of compression that was recovered; None where nothing was lost."""
        return recovered(self.before, self.after, self.baseline)

    @property
    def changed(self) -> int:
        """Number of codes that changed, over all E-steps that were kept."""
        return sum(e.changed for e in self.esteps if e.kept)

    @property
    def revived(self) -> int:
        """Number of codewords that were replaced, over all E-steps that were kept."""
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
