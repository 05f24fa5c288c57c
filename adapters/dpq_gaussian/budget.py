"""Steps for a number of bytes: which attribute of a scene is worth how many of them.

A sample of the scene is coded at a few step sizes. That tells the bytes of each attribute, and,
drawn with this one attribute as coded and all others as they were, what its errors do to the
pictures. Both are near straight lines over the logarithm of the step in between, so the planner of
the engine (``dpq_core.planning.allocate``) can choose among many. What the whole file then takes
decides by how much all steps are scaled together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpq_core.artifact.single_writer import Packed, size_of
from dpq_core.errors import SpecError
from dpq_core.planning.allocate import Choice, allocate
from dpq_core.run import Run
from dpq_gaussian.cameras import Camera
from dpq_gaussian.cameras.surrounding import near_plane, surrounding_cameras
from dpq_gaussian.codec import Encoded, encode
from dpq_gaussian.codec.decoding import UnwrittenScene
from dpq_gaussian.codec.distortion import LONGEST, measure
from dpq_gaussian.codec.encoding import cube, grid_of
from dpq_gaussian.compress import Prepared, coded, packed_of, prepare
from dpq_gaussian.options import CompressOptions
from dpq_gaussian.policy import POWER, Policy
from dpq_gaussian.rendering import RenderOptions, Splats, render
from dpq_gaussian.scene import Scene
from dpq_gaussian.scene.morton import morton_order

SAMPLE = 1 << 16
"""Gaussians that are looked at, in runs of neighbours."""

RUN = 4096

LEVELS = (0.4, 1.0, 2.5)
"""Factors of the sample, relative to the preset: steps are divided by them."""

FACTORS = tuple(2.0 ** (k / 4) for k in range(-16, 21))
"""Of the choices; beyond them steps are as large as an attribute, or symbols get too large."""

TRUST = 0.5
"""Without the user's cameras: how far to go from the preset, in logarithms. The cameras set up
around the scene are a guess; the presets were fitted at real cameras, which see more of colour
and harmonics."""

VIEWS = 6
SIZE = 128
"""Pictures, and their width in pixels."""

CLOSE = 0.993
"""Of the budget: this is near enough; a header can come out some bytes shorter than estimated."""

AIM = 0.997

ENCODINGS = 10
"""Of the whole scene, at most; two to four are usual."""

PARTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "positions": (("positions",), ("positions", "paths"), ("positions",)),
    "shapes": (("scales", "rotations"), ("scales", "rotations"), ("log_scales", "rotations")),
    "opacity": (("opacity",), ("opacity",), ("opacity_logits",)),
    "color": (("color",), ("color",), ("sh_dc",)),
    "harmonics": (("harmonics",), ("harmonics",), ("sh_rest",)),
}
"""What shares a factor: attributes of the policy, streams of the file, arrays of a scene. Scales
and rotations are told in a form that only makes sense for both together."""


@dataclass(frozen=True)
class Curve:
    """Bytes and squared error of pictures by the factor, through the points of a sample.

    Attributes:
        factors: ascending.
        nbytes: of each.
        costs: of each.
    """

    factors: tuple[float, ...]
    nbytes: tuple[float, ...]
    costs: tuple[float, ...]

    def at(self, factor: float) -> Choice:
        """Straight lines over logarithms, the outer ones continued."""
        return Choice(
            math.ceil(_line(self.factors, self.nbytes, factor)),
            _line(self.factors, self.costs, factor),
        )


def pack_within(source: str, options: CompressOptions, budget: int, run: Run) -> Packed:
    """Code a scene as well as a number of bytes allows; the file is never larger.

    Raises:
        SourceError: the scene cannot be read, or has values that cannot be coded.
        SpecError: the budget is too small.
    """
    prepared = prepare(source, options, run)
    run.progress("plan", 40, 100)
    base = options.policy()
    found, fixed = curves(prepared, base)
    trust = 1.0 if prepared.cameras else TRUST
    factors = {name: factor**trust for name, factor in spread(found, budget - fixed).items()}
    policy, encoded = _fitted(prepared, (base, factors), budget, run)
    run.progress("measure", 90, 100)
    packed = packed_of(prepared, policy, encoded, measure(prepared.scene, encoded))
    run.progress("done", 100, 100)
    shares = [f"{name}={_relative(base, policy, name):.4g}" for name in _attributes(factors)]
    note = f"fitted to {budget:,} bytes: as --attribute {' --attribute '.join(shares)}"
    return dataclasses.replace(packed, notes=(*packed.notes, note))


def curves(prepared: Prepared, base: Policy) -> tuple[dict[str, Curve], int]:
    """Bytes of the whole scene and squared error of pictures by part, from a sample.

    Also the bytes of all that has no steps: models, classes of importance, codes of harmonics.
    """
    picked = sample(prepared)
    scene = prepared.scene.take(picked)
    seen = prepared.seen[picked]
    parts = {
        name: arrays
        for name, (_, _, arrays) in PARTS.items()
        if name != "harmonics" or (scene.sh_rest.shape[1] and base.harmonic_spec is None)
    }
    scale = prepared.count / len(scene)
    camera_options = RenderOptions(antialiased=prepared.antialiased)
    near = 0.2 if prepared.cameras else near_plane(scene)
    how = dataclasses.replace(camera_options, near=near)
    views = _views(prepared.cameras or surrounding_cameras(scene))
    wanted = _pictures(scene, views, how)
    fixed = 0.0
    nbytes: dict[str, list[float]] = {name: [] for name in parts}
    costs: dict[str, list[float]] = {name: [] for name in parts}
    for level in LEVELS:
        encoded = encode(scene, seen, _scaled(base, dict.fromkeys(parts, level)))
        decoded, original = _whole(encoded), scene.take(encoded.order)
        sizes = {stream: scale * sum(map(len, b)) for stream, b in encoded.chunked.items()}
        fixed = len(encoded.models) + sum(sizes.values())
        for name, arrays in parts.items():
            nbytes[name].append(max(1.0, sum(sizes[stream] for stream in PARTS[name][1])))
            fixed -= nbytes[name][-1]
            one = dataclasses.replace(original, **{a: getattr(decoded, a) for a in arrays})
            costs[name].append(_difference(_pictures(one, views, how), wanted))
    found = {name: Curve(LEVELS, tuple(nbytes[name]), tuple(costs[name])) for name in parts}
    return found, math.ceil(fixed)


def spread(found: Mapping[str, Curve], budget: int) -> dict[str, float]:
    """The factor of each part with which pictures suffer least in so many bytes."""
    items = [[curve.at(factor) for factor in FACTORS] for curve in found.values()]
    least = sum(min(choice.nbytes for choice in choices) for choices in items)
    chosen = allocate(items, max(budget, least))
    return {name: FACTORS[i] for name, i in zip(found, chosen, strict=True)}


def sample(prepared: Prepared) -> npt.NDArray[np.int64]:
    """Indices of the Gaussians to look at, ascending: runs of neighbours all over the scene."""
    kept = np.arange(len(prepared.scene)) if prepared.kept is None else prepared.kept
    if len(kept) <= SAMPLE:
        return kept
    positions = np.ascontiguousarray(prepared.scene.positions[kept])
    order = morton_order(grid_of(positions, *cube(positions)))
    starts = np.linspace(0, len(kept) - RUN, SAMPLE // RUN).astype(np.int64)
    picked = np.unique((starts[:, None] + np.arange(RUN)).reshape(-1))
    return np.sort(kept[order[picked]])


def _fitted(
    prepared: Prepared, start: tuple[Policy, Mapping[str, float]], budget: int, run: Run
) -> tuple[Policy, Encoded]:
    """All factors scaled together until the file is as large as it may be.

    Raises:
        SpecError: with the coarsest steps it is still larger.
    """
    base, factors = start
    best: tuple[int, Policy, Encoded] | None = None
    tried: list[tuple[float, int]] = []
    common = 1.0
    for count in range(ENCODINGS):
        run.progress("fit", 50 + 40 * count / ENCODINGS, 100)
        policy = _scaled(base, {k: _limited(f * common) for k, f in factors.items()})
        encoded = coded(prepared, policy)
        size = size_of(packed_of(prepared, policy, encoded, LONGEST))
        tried.append((common, size))
        if size <= budget and (best is None or size > best[0]):
            best = size, policy, encoded
        if CLOSE * budget <= size <= budget:
            break
        following = _next(tried, AIM * budget)
        limits = {_limited(f * following) for f in factors.values()}
        if limits == {_limited(f * common) for f in factors.values()}:
            break
        common = following
    if best is None:
        least = min(size for _, size in tried)
        raise SpecError(
            f"{prepared.source}: {budget:,} bytes are too few; with the coarsest steps that were "
            f"tried it takes {least:,}"
        )
    return best[1], best[2]


def _next(tried: Sequence[tuple[float, int]], aim: float) -> float:
    """The common factor to try: where the line through the nearest two sizes meets the aim."""
    below = max((t for t in tried if t[1] <= aim), key=lambda t: t[1], default=None)
    above = min((t for t in tried if t[1] > aim), key=lambda t: t[1], default=None)
    if below and above:
        share = math.log(aim / below[1]) / math.log(above[1] / below[1])
        # never so near an end that the bracket hardly shrinks
        share = min(max(share, 0.1), 0.9)
        return below[0] * math.exp(share * math.log(above[0] / below[0]))
    common, size = tried[-1]
    power = POWER
    if len(tried) > 1 and tried[-2][1] != size:
        power = math.log(common / tried[-2][0]) / math.log(size / tried[-2][1])
        power = min(max(power, 1.0), 4 * POWER)
    return common * min(max(math.exp(power * math.log(aim / size)), 1 / 16), 16.0)


def _limited(factor: float) -> float:
    """Within the range of the choices, and as the note for the user can say it."""
    return float(f"{min(max(factor, FACTORS[0]), FACTORS[-1]):.4g}")


def _scaled(base: Policy, factors: Mapping[str, float]) -> Policy:
    return base.refined({a: f for name, f in factors.items() for a in PARTS[name][0]})


def _attributes(factors: Mapping[str, float]) -> list[str]:
    return [attribute for name in factors for attribute in PARTS[name][0]]


def _relative(base: Policy, policy: Policy, name: str) -> float:
    return float(getattr(base, name).base / getattr(policy, name).base)


def _whole(encoded: Encoded) -> Scene:
    parts = [chunk.arrays() for chunk in UnwrittenScene(encoded)]
    return Scene(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _views(cameras: Sequence[Camera]) -> list[Camera]:
    """A few, evenly spread, in small pictures."""
    count = min(VIEWS, len(cameras))
    picked = [cameras[i * len(cameras) // count] for i in range(count)]
    return [c.scaled(min(1.0, SIZE / max(c.width, c.height))) for c in picked]


def _pictures(scene: Scene, views: Sequence[Camera], options: RenderOptions) -> list[Tensor]:
    splats = Splats.of(scene)
    with torch.no_grad():
        return [render(splats, view, options).colour for view in views]


def _difference(pictures: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Mean squared difference; never 0, whose logarithm would be no number."""
    squares = [float((a - b).square().mean()) for a, b in zip(pictures, wanted, strict=True)]
    return max(sum(squares) / len(squares), 1e-18)


def _line(at: Sequence[float], values: Sequence[float], x: float) -> float:
    """The value at x of straight lines through points, both as logarithms."""
    place = next((i for i in range(1, len(at) - 1) if x < at[i]), len(at) - 1)
    low, high = math.log(values[place - 1]), math.log(values[place])
    share = math.log(x / at[place - 1]) / math.log(at[place] / at[place - 1])
    return math.exp(low + share * (high - low))
