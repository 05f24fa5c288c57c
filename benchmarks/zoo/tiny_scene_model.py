"""The Gaussians in training: one Adam, and MCMC moves within a fixed budget.

Kheradmand et al. 2024 (3DGS-MCMC): Gaussians are never cloned or split by hand. Those that have
become transparent move to the places of opaque ones, new ones join there until the budget is used,
both so that the picture stays the same; noise lets the faint ones explore.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_gaussian.rendering import Splats

RATES = {
    "positions": 1.6e-4,  # times the extent of the scene; decays to a hundredth
    "log_scales": 5e-3,
    "rotations": 1e-3,
    "opacity_logits": 5e-2,
    "sh_dc": 2.5e-3,
    "sh_rest": 2.5e-3 / 20,
}
COOL_FROM = 0.88  # share of the training
MOMENTS = ("exp_avg", "exp_avg_sq")
DEAD = 0.005  # opacity
GROWTH = 1.05
NOISE = 5e5
LEAST_OPACITY = 0.0051
MOST_PARTS = 51


@dataclass(frozen=True, kw_only=True)
class Moves:
    """How many Gaussians a round moved and added."""

    moved: int
    added: int


class Model:
    def __init__(self, tensors: dict[str, Tensor], extent: float) -> None:
        self.extent = extent
        self.parameters = {n: t.clone().requires_grad_() for n, t in tensors.items()}
        groups = [
            {"params": [self.parameters[name]], "lr": rate, "name": name}
            for name, rate in RATES.items()
        ]
        self.optimizer = torch.optim.Adam(groups, eps=1e-15, fused=True)

    def __len__(self) -> int:
        return len(self.parameters["positions"])

    @property
    def splats(self) -> Splats:
        return Splats(**self.parameters)

    def set_rate(self, progress: float) -> None:
        """Learning rates after a share of the training; at the end all fall to a tenth."""
        late = max(0.0, (progress - COOL_FROM) / (1 - COOL_FROM))
        for group in self.optimizer.param_groups:
            group["lr"] = RATES[group["name"]] * 0.1**late
            if group["name"] == "positions":
                group["lr"] *= self.extent * 0.01**progress

    @property
    def position_rate(self) -> float:
        return next(g["lr"] for g in self.optimizer.param_groups if g["name"] == "positions")

    @torch.no_grad()
    def explore(self, generator: torch.Generator) -> None:
        """Noise in proportion to the covariance, for faint Gaussians."""
        opacity = torch.sigmoid(self.parameters["opacity_logits"])
        faint = (opacity < 0.1).nonzero()[:, 0]  # beyond, the gate below is shut
        gate = torch.sigmoid(-100 * (opacity[faint] - 0.005))
        noise = torch.randn(len(faint), 3, generator=generator)
        axes = _rotations(self.parameters["rotations"][faint])
        variances = (2 * self.parameters["log_scales"][faint]).exp()
        noise = torch.einsum("nij,nj,nkj,nk->ni", axes, variances, axes, noise)
        self.parameters["positions"][faint] += noise * (gate * NOISE * self.position_rate)[:, None]

    @torch.no_grad()
    def move(self, budget: int, generator: torch.Generator) -> Moves:
        """Send the dead to the living and let new ones join, within the budget."""
        opacity = torch.sigmoid(self.parameters["opacity_logits"])
        length = self.parameters["log_scales"].abs().amax(1)
        dead = ((opacity <= DEAD) | ~torch.isfinite(length)).nonzero()[:, 0]
        alive = (opacity > DEAD).nonzero()[:, 0]
        chosen = alive[torch.multinomial(opacity[alive], len(dead), True, generator=generator)]
        self._share(chosen, dead)
        room = min(budget, int(GROWTH * len(self))) - len(self)
        if room > 0:
            opacity = torch.sigmoid(self.parameters["opacity_logits"])
            chosen = torch.multinomial(opacity, room, True, generator=generator)
            first = len(self)
            self._resize(torch.cat([torch.arange(first), chosen]))
            self._share(chosen, torch.arange(first, first + room))
        return Moves(moved=len(dead), added=max(room, 0))

    def _share(self, sources: Tensor, targets: Tensor) -> None:
        """Put copies of ``sources`` at ``targets``; together they look as one did before."""
        if len(sources) == 0:
            return
        parts = torch.bincount(sources, minlength=len(self)) + 1
        old = self.parameters["opacity_logits"][sources].sigmoid()
        opacity, scale = shared(old, parts[sources])
        self.parameters["opacity_logits"][sources] = torch.logit(opacity)
        self.parameters["log_scales"][sources] += scale.log()[:, None]
        for parameter in self.parameters.values():
            parameter[targets] = parameter[sources]
            state = self.optimizer.state.get(parameter, {})
            for key in MOMENTS:
                if key in state:
                    state[key][sources] = 0
                    state[key][targets] = 0

    def _resize(self, rows: Tensor) -> None:
        """Keep and repeat rows; repeated ones begin with moments of zero."""
        first = len(self)
        for group in self.optimizer.param_groups:
            old = group["params"][0]
            new = old.detach()[rows].requires_grad_()
            state = self.optimizer.state.pop(old, {})
            for key in MOMENTS:
                if key in state:
                    state[key] = state[key][rows]
                    state[key][first:] = 0
            group["params"] = [new]
            self.parameters[group["name"]] = new
            if state:
                self.optimizer.state[new] = state


def shared(opacity: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity, and factor of the scale, of each of ``parts`` Gaussians that replace one.

    Equation 9 of Kheradmand et al.: the opacities blend to the old one at the centre, and the
    integral over a line through it stays the same.
    """
    parts = parts.clamp_max(MOST_PARTS)
    new = 1 - (1 - opacity.double()) ** (1 / parts)
    total = torch.zeros_like(new)
    for i in range(1, int(parts.max()) + 1):
        term = torch.zeros_like(new)
        for k in range(i):
            term += math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * new ** (k + 1)
        total += torch.where(parts >= i, term, 0)
    factor = opacity.double() / total
    return new.clamp(LEAST_OPACITY, 1 - 1e-7).float(), factor.float()


def _rotations(quaternions: Tensor) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
