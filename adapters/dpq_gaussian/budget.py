"""Compression of a scene into a number of bytes, divided among its attributes by their worth.

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
from dpq_gaussian.cameras import Camera, sampled
from dpq_gaussian.cameras.surrounding import near_plane, surrounding_cameras
from dpq_gaussian.codec import Encoded, encode
from dpq_gaussian.codec.decoding import UnwrittenScene
from dpq_gaussian.codec.distortion import LONGEST, measure
from dpq_gaussian.codec.outliers import robust_cube
from dpq_gaussian.codec.positions import to_grid
from dpq_gaussian.compress import PreparedScene, encode_prepared, prepare, to_packed
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
    """Rate-distortion curve of one part of a scene: bytes and picture error by step factor.

    Attributes:
        factors: step factors, ascending.
        nbytes: bytes at each factor.
        costs: mean squared error of the pictures at each factor.
    """

    factors: tuple[float, ...]
    nbytes: tuple[float, ...]
    costs: tuple[float, ...]

    def at(self, factor: float) -> Choice:
        """The bytes and the error at one factor, interpolated linearly over logarithms."""
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
    curves, fixed = measure_curves(prepared, base)
    trust = 1.0 if prepared.cameras else TRUST
    factors = {name: factor**trust for name, factor in best_factors(curves, budget - fixed).items()}
    policy, encoded = _scale_to_budget(prepared, (base, factors), budget, run)
    run.progress("measure", 90, 100)
    packed = to_packed(prepared, policy, encoded, measure(prepared.scene, encoded))
    run.progress("done", 100, 100)
    shares = [f"{name}={_relative(base, policy, name):.4g}" for name in _attributes(factors)]
    note = f"fitted to {budget:,} bytes, as by the attributes {' '.join(shares)}"
    return dataclasses.replace(packed, notes=(*packed.notes, note))


def measure_curves(prepared: PreparedScene, base: Policy) -> tuple[dict[str, Curve], int]:
    """Measures the rate-distortion curve of each part on a sample of the scene.

    Also the bytes of all that has no steps: models, classes of importance, codes of harmonics.
    """
    picked = sampled_rows(prepared)
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
    views = sampled(prepared.cameras or surrounding_cameras(scene), VIEWS, SIZE)
    references = _pictures(scene, views, how)
    fixed = 0.0
    nbytes: dict[str, list[float]] = {name: [] for name in parts}
    costs: dict[str, list[float]] = {name: [] for name in parts}
    for level in LEVELS:
        encoded = encode(scene, seen, _scaled(base, dict.fromkeys(parts, level)))
        decoded, original = _decoded(encoded), scene.take(encoded.order)
        sizes = {stream: scale * sum(map(len, b)) for stream, b in encoded.chunked.items()}
        fixed = len(encoded.models) + sum(sizes.values())
        for name, arrays in parts.items():
            nbytes[name].append(max(1.0, sum(sizes[stream] for stream in PARTS[name][1])))
            fixed -= nbytes[name][-1]
            replaced = dataclasses.replace(original, **{a: getattr(decoded, a) for a in arrays})
            costs[name].append(_difference(_pictures(replaced, views, how), references))
    curves = {name: Curve(LEVELS, tuple(nbytes[name]), tuple(costs[name])) for name in parts}
    return curves, math.ceil(fixed)


def best_factors(curves: Mapping[str, Curve], budget: int) -> dict[str, float]:
    """Chooses the step factor of each part for the least picture error in ``budget`` bytes."""
    items = [[curve.at(factor) for factor in FACTORS] for curve in curves.values()]
    least = sum(min(choice.nbytes for choice in choices) for choices in items)
    chosen = allocate(items, max(budget, least))
    return {name: FACTORS[i] for name, i in zip(curves, chosen, strict=True)}


def sampled_rows(prepared: PreparedScene) -> npt.NDArray[np.int64]:
    """Picks the Gaussians to measure on: ascending indices, in runs of neighbours in space."""
    kept = np.arange(len(prepared.scene)) if prepared.kept is None else prepared.kept
    if len(kept) <= SAMPLE:
        return kept
    positions = np.ascontiguousarray(prepared.scene.positions[kept])
    corner, side, _ = robust_cube(positions, prepared.scene.log_scales)
    order = morton_order(to_grid(positions, corner, side))
    starts = np.linspace(0, len(kept) - RUN, SAMPLE // RUN).astype(np.int64)
    picked = np.unique((starts[:, None] + np.arange(RUN)).reshape(-1))
    return np.sort(kept[order[picked]])


def _scale_to_budget(
    prepared: PreparedScene, start: tuple[Policy, Mapping[str, float]], budget: int, run: Run
) -> tuple[Policy, Encoded]:
    """Scales all factors together until the file is just within the budget.

    Raises:
        SpecError: with the coarsest steps it is still larger.
    """
    base, factors = start
    best: tuple[int, Policy, Encoded] | None = None
    tried: list[tuple[float, int]] = []
    common = 1.0
    for count in range(ENCODINGS):
        run.progress("fit", 50 + 40 * count / ENCODINGS, 100)
        policy = _scaled(base, {k: _clamped(f * common) for k, f in factors.items()})
        encoded = encode_prepared(prepared, policy)
        size = size_of(to_packed(prepared, policy, encoded, LONGEST))
        tried.append((common, size))
        if size <= budget and (best is None or size > best[0]):
            best = size, policy, encoded
        if CLOSE * budget <= size <= budget:
            break
        following = _next_scale(tried, AIM * budget)
        limits = {_clamped(f * following) for f in factors.values()}
        if limits == {_clamped(f * common) for f in factors.values()}:
            break
        common = following
    if best is None:
        least = min(size for _, size in tried)
        raise SpecError(
            f"{prepared.source}: {budget:,} bytes are too few; with the coarsest steps that were "
            f"tried it takes {least:,}"
        )
    return best[1], best[2]


def _next_scale(tried: Sequence[tuple[float, int]], aim: float) -> float:
    """The next common factor to try, interpolated between the two sizes nearest to the aim."""
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


def _clamped(factor: float) -> float:
    """A factor limited to the range of FACTORS and rounded to the four digits that are shown."""
    return float(f"{min(max(factor, FACTORS[0]), FACTORS[-1]):.4g}")


def _scaled(base: Policy, factors: Mapping[str, float]) -> Policy:
    return base.refined({a: f for name, f in factors.items() for a in PARTS[name][0]})


def _attributes(factors: Mapping[str, float]) -> list[str]:
    return [attribute for name in factors for attribute in PARTS[name][0]]


def _relative(base: Policy, policy: Policy, name: str) -> float:
    return float(getattr(base, name).base / getattr(policy, name).base)


def _decoded(encoded: Encoded) -> Scene:
    parts = [chunk.arrays() for chunk in UnwrittenScene(encoded)]
    return Scene(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _pictures(scene: Scene, views: Sequence[Camera], options: RenderOptions) -> list[Tensor]:
    splats = Splats.of(scene)
    with torch.no_grad():
        return [render(splats, view, options).colour for view in views]


def _difference(pictures: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """Mean squared difference of pictures, at least 1e-18 because its logarithm is taken."""
    squares = [float((a - b).square().mean()) for a, b in zip(pictures, references, strict=True)]
    return max(sum(squares) / len(squares), 1e-18)


def _line(at: Sequence[float], values: Sequence[float], x: float) -> float:
    """Piecewise linear interpolation in the logarithms of both, extrapolated at the ends."""
    place = next((i for i in range(1, len(at) - 1) if x < at[i]), len(at) - 1)
    low, high = math.log(values[place - 1]), math.log(values[place])
    share = math.log(x / at[place - 1]) / math.log(at[place] / at[place - 1])
    return math.exp(low + share * (high - low))
