"""CalibrateSettings: every choice of the calibration loop, and the schedules derived from it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from dpq_core.errors import SpecError

MODES = ("auto", "block", "end", "both")
ESTEPS = ("icm+pv", "icm", "blockdiag", "l2", "pv", "none")
GRADIENT = ("icm+pv", "pv")
"""Kinds of E-step that follow the loss gradient."""
SCHEDULES = ("constant", "cosine")

ESTEPS_AT_LEAST = 16
"""Least number of E-steps of a phase, however short it is."""

LAST_ESTEP = 0.8
"""Share of a phase after which codes stay fixed, so that the codewords converge.

See docs/algorithms.md#e-step.
"""

UNLIMITED = 0.5
"""Share of a phase in which an E-step may change any number of codes.

See docs/algorithms.md#e-step.
"""


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """Settings of the calibration of a student: EM over its quantized weights.

    See docs/algorithms.md#e-step, #dead-codewords, #recompute.

    Attributes:
        steps: M-steps of end-to-end training.
        mode: ``block`` trains block after block on the teacher's outputs, ``end`` the whole student
            on the task's loss, ``both`` one after the other; ``auto`` is ``both`` where the task
            has blocks.
        block_steps: M-steps per block; 0 is ``steps`` in mode ``block``, half of it in ``both``.
        block_batches: training batches whose activations are kept while a block is trained.
        lr: learning rate of AdamW for weights of RMS 0.05; codebooks and scales get it times
            RMS / 0.05, which is the same relative change everywhere (docs/algorithms.md#m-step).
        betas: the betas of AdamW.
        warmup: share of a phase's steps in which the learning rate rises from 0.
        schedule: ``constant``, or ``cosine`` down to a hundredth at the end of a phase.
        clip: largest norm of the gradient; 0 does not clip.
        estep: how codes are chosen: against the output error by coordinate descent (``icm``) or
            group by group (``blockdiag``), nearest in weight space (``l2``), along the loss
            gradient (``pv``, PV-Tuning), by ``icm`` and once that helps no more by ``pv``
            (``icm+pv``), or not at all (``none``).
        every: M-steps between E-steps, at most: short phases get sixteen E-steps too.
        limit: share of all codes that one E-step of the second half may change.
        rho: decay per E-step of the moving average of the layers' statistics.
        statistics_batches: batches that an E-step looks at.
        warm_start: begin with codebooks that solve the layers' least-squares problems.
        validate_every: M-steps between validations; 0 is a twentieth of the phase.
        patience: validations without a better one after which a phase ends; 0 never.
        candidates: nearest codewords per subvector between which every block chooses by gradient
            descent before its codebooks are trained (docs/algorithms.md#candidates); 0 leaves this
            out, 2 and 3 are good choices. Each block gets as many steps for it as for its
            codebooks.
        tau_dead: M-steps after which a codeword that no code uses is given a new value; 0 never.
        save_every: M-steps between saved states; 0 saves on Ctrl-C only.
        recompute: decode a weight again for the backward pass instead of keeping it; None does so
            when the student's dense weights exceed one gigabyte.
        mixed: bfloat16 activations on a GPU.
        seed: the only source of randomness.
    """

    steps: int = 1000
    mode: str = "auto"
    block_steps: int = 0
    block_batches: int = 16
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.02
    schedule: str = "cosine"
    clip: float = 1.0
    estep: str = "icm+pv"
    every: int = 100
    limit: float = 0.01
    rho: float = 0.95
    statistics_batches: int = 4
    warm_start: bool = True
    validate_every: int = 0
    patience: int = 0
    candidates: int = 0
    tau_dead: int = 256
    save_every: int = 200
    recompute: bool | None = None
    mixed: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field and report all mistakes at once."""
        at_least_0 = ("block_steps", "every", "validate_every", "patience", "tau_dead")
        at_least_1 = ("steps", "block_batches", "statistics_batches")
        shares = ("warmup", "limit", "rho")
        checks = [
            *((getattr(self, name) >= 0, f"{name} must be 0 or more") for name in at_least_0),
            *((getattr(self, name) >= 1, f"{name} must be 1 or more") for name in at_least_1),
            *((0 <= getattr(self, name) <= 1, f"{name} must be 0..1") for name in shares),
            (self.every >= 1, "every must be 1 or more"),
            (self.save_every >= 0, "save_every must be 0 or more"),
            (self.seed >= 0, "seed must be 0 or more"),
            (self.candidates == 0 or self.candidates >= 2, "candidates must be 0, or 2 or more"),
            (self.mode in MODES, f"mode must be one of {', '.join(MODES)}"),
            (self.estep in ESTEPS, f"estep must be one of {', '.join(ESTEPS)}"),
            (self.schedule in SCHEDULES, f"schedule must be one of {', '.join(SCHEDULES)}"),
            (math.isfinite(self.lr) and self.lr >= 0, "lr must be 0 or more"),
            (math.isfinite(self.clip) and self.clip >= 0, "clip must be 0 or more"),
            (all(0 <= b < 1 for b in self.betas), "betas must be in [0, 1)"),
        ]
        wrong = [message for ok, message in checks if not ok]
        if wrong:
            raise SpecError("calibrate: " + "; ".join(wrong))

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}

    def interval(self, steps: int) -> int:
        """Number of M-steps between two E-steps in a phase of ``steps`` M-steps."""
        return max(1, min(self.every, int(LAST_ESTEP * steps) // ESTEPS_AT_LEAST))

    def validation_interval(self, steps: int) -> int:
        """Number of M-steps between two validations in a phase of ``steps`` M-steps."""
        return self.validate_every or max(1, steps // 20)

    def estep_due(self, step: int, steps: int) -> bool:
        """Whether an E-step comes before M-step ``step`` of a phase; always at step 0."""
        return step % self.interval(steps) == 0 and step < LAST_ESTEP * steps

    def limit_at(self, progress: float) -> float:
        """Share of the codes that an E-step may change, by the share of the phase that is done."""
        return 1.0 if progress < UNLIMITED else self.limit

    def lr_at(self, step: int, steps: int) -> float:
        """Factor of the learning rate at M-step ``step`` of a phase of ``steps`` M-steps."""
        warm = math.ceil(self.warmup * steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        if self.schedule == "constant":
            return 1.0
        share = (step - warm) / max(1, steps - warm)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))

    def block_steps_in(self, mode: str) -> int:
        """Number of M-steps per block in mode ``block`` or ``both``."""
        return self.block_steps or (self.steps if mode == "block" else max(1, self.steps // 2))
