"""The CPU path: compiled kernels over Gaussians and tiles, on several threads.

Every sum is taken in an order that the scene and the camera fix, so results do not depend on the
number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpq_core.kernels.cpu.threads import spread
from dpq_gaussian.cameras.camera import Camera
from dpq_gaussian.rendering import harmonics, project, raster
from dpq_gaussian.rendering.constants import (
    DEPTH,
    FIELDS,
    GRADIENTS,
    INV_U,
    INV_V,
    REACH,
    SLOPE,
    TILE,
)
from dpq_gaussian.rendering.tiles import depth_order, tile_lists
from dpq_gaussian.rendering.types import Rendered, RenderOptions, Splats
from dpq_gaussian.scene import SH_REST

F = TypeVar("F", bound=Callable[..., Any])
_jit = cast(Callable[[F], F], numba.njit(cache=True, nogil=True))
FloatArray = npt.NDArray[np.float32]

_STEPS = 64  # inner steps that projecting a Gaussian is worth
_PIECES = 64  # of the tiles, each with about as many pairs
_ROWS = TILE * 8  # inner steps that a pair of splat and tile is worth


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """A blended picture with the intermediate results that its gradient needs."""

    visible: npt.NDArray[np.int64]  # [V] Gaussian of each splat, ascending
    splats: FloatArray  # [V, FIELDS]
    order: npt.NDArray[np.int64]  # [V] splats by depth
    nearest: FloatArray  # [V, FIELDS] splats[order]
    lists: tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]
    image: FloatArray  # [H, W, 5]
    last: FloatArray  # [H, W]
    pair_weights: FloatArray  # [P]


def render_cpu(splats: Splats, camera: Camera, options: RenderOptions) -> Rendered:
    """Draws splats on the CPU (see ``rendering.render``)."""
    tensors = [tensor.float().contiguous() for tensor in splats.tensors()]
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    means2d = torch.zeros((len(splats), 2), requires_grad=True) if needs_gradient else None
    image, weights, radii = cast(
        "tuple[Tensor, Tensor, Tensor]",
        _Render.apply(camera, options, means2d, *tensors),  # type: ignore[no-untyped-call]
    )
    colour = image[..., :3]
    if any(options.background):
        colour = colour + (1 - image[..., 4:]) * torch.tensor(options.background)
    return Rendered(
        colour=colour,
        alpha=image[..., 4],
        depth=image[..., 3],
        weights=weights,
        radii=radii,
        means2d=means2d,
    )


class _Render(torch.autograd.Function):
    """Colour without background, depth and alpha [H, W, 5], weights [N] and radii [N]."""

    @staticmethod
    def forward(ctx: Any, camera: Camera, options: RenderOptions, *inputs: Tensor) -> Any:
        arrays = [tensor.detach().numpy() for tensor in inputs[1:]]
        frame = _blend(arrays, camera, options)
        ctx.frame, ctx.camera, ctx.options = frame, camera, options
        ctx.save_for_backward(*inputs[1:])
        image = frame.image.copy()
        image[..., 4] = 1 - image[..., 4]
        weights = np.zeros((len(arrays[0]) if options.weights else 0, 1), np.float32)
        if options.weights:
            rows = frame.visible[frame.order]
            _gather(frame.lists[1], frame.pair_weights[:, None], rows, weights)
        radii = np.zeros(len(arrays[0]), np.float32)
        radii[frame.visible] = _radii(frame.splats)
        results = torch.from_numpy(image), torch.from_numpy(weights[:, 0]), torch.from_numpy(radii)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> Any:
        arrays = [tensor.detach().numpy() for tensor in ctx.saved_tensors]
        image_grad = np.ascontiguousarray(output_grads[0].numpy(), np.float32)
        grads = _unblend(ctx.frame, arrays, image_grad, ctx.camera, ctx.options)
        return (None, None, *(torch.from_numpy(grad) for grad in grads))


def _blend(arrays: list[FloatArray], camera: Camera, options: RenderOptions) -> _Frame:
    size = (camera.width, camera.height)
    visible, splats = _project(arrays, camera, options)
    scene, degree = _shading(arrays, options)
    spread(
        lambda first, last: harmonics.shade(
            first, last, visible, scene, camera.centre, degree, splats
        ),
        len(splats),
        _STEPS * len(splats),
    )
    order = depth_order(splats[:, DEPTH].copy())
    nearest = _take(splats, order)
    lists = tile_lists(nearest, size)
    pair_weights = np.empty(len(lists[1]), np.float32)
    image = np.empty((camera.height, camera.width, 5), np.float32)
    marks = np.empty((camera.height, camera.width), np.float32)
    _over_tiles(
        lambda tiles: raster.forward(tiles, lists, nearest, pair_weights, image, marks),
        lists[0],
        camera.width,
    )
    return _Frame(
        visible=visible,
        splats=splats,
        order=order,
        nearest=nearest,
        lists=lists,
        image=image,
        last=marks,
        pair_weights=pair_weights,
    )


def _project(
    arrays: list[FloatArray], camera: Camera, options: RenderOptions
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """The Gaussians that are seen, ascending, and their splats without colours."""
    geometry, size = tuple(arrays[:4]), (camera.width, camera.height)
    projected = np.empty((len(arrays[0]), FIELDS), np.float32)
    pose = _pose(camera, options)
    spread(
        lambda first, last: project.project(first, last, geometry, pose, size, projected),
        len(projected),
        _STEPS * len(projected),
    )
    visible = np.flatnonzero(projected[:, REACH] > 0)
    return visible, _take(projected, visible)


def _unblend(
    frame: _Frame,
    arrays: list[FloatArray],
    image_grad: FloatArray,
    camera: Camera,
    options: RenderOptions,
) -> list[FloatArray]:
    """Gradients of means2d and of the arrays."""
    lists, splats, visible = frame.lists, frame.splats, frame.visible
    pair_sums = np.empty((len(lists[1]), GRADIENTS), np.float32)
    _over_tiles(
        lambda tiles: raster.backward(
            tiles, lists, frame.nearest, frame.image, frame.last, image_grad, pair_sums
        ),
        lists[0],
        camera.width,
    )
    sums = np.zeros((len(splats), GRADIENTS), np.float32)
    _gather(lists[1], pair_sums, frame.order, sums)
    means2d = np.zeros((len(arrays[0]), 2), np.float32)
    grads = [np.zeros_like(array) for array in arrays]
    pose = _pose(camera, options)
    colour_grads = np.ascontiguousarray(sums[:, 6:9])

    scene, degree = _shading(arrays, options)
    geometry, shading = tuple(arrays[:4]), (grads[0], grads[4], grads[5])

    def pull(first: int, last: int) -> None:
        span, eye = (first, last, visible), camera.centre
        into = (*grads[:4], means2d)
        project.project_grad(*span, geometry, pose, sums, into)
        harmonics.shade_grad(*span, scene, eye, degree, splats, colour_grads, shading)

    spread(pull, len(splats), _STEPS * len(splats))
    return [means2d, *grads]


def _pose(camera: Camera, options: RenderOptions) -> tuple[Any, Any]:
    """Rotation and lens as dpq_gaussian.rendering.project wants them."""
    # As in gsplat: the linearisation holds to 15 % of the picture's size beyond its border.
    margin_x, margin_y = 0.15 * camera.width / camera.fx, 0.15 * camera.height / camera.fy
    lens = [
        *camera.translation,
        *(camera.fx, camera.fy, camera.cx, camera.cy),
        *(-camera.cx / camera.fx - margin_x, (camera.width - camera.cx) / camera.fx + margin_x),
        *(-camera.cy / camera.fy - margin_y, (camera.height - camera.cy) / camera.fy + margin_y),
        *(options.near, float(options.antialiased)),
    ]
    return np.ascontiguousarray(camera.rotation), np.array(lens)


def _shading(arrays: list[FloatArray], options: RenderOptions) -> tuple[Any, int]:
    """The colour coefficients of the splats, and the degree of harmonics to use."""
    available = {terms: degree for degree, terms in SH_REST.items()}[arrays[5].shape[1]]
    return (arrays[0], arrays[4], arrays[5]), min(available, options.sh_degree)


def _over_tiles(
    run: Callable[[tuple[int, int, int]], None], starts: npt.NDArray[np.int64], width: int
) -> None:
    """Call ``run`` for ranges of tiles with about as many pairs in each."""
    tiles, pairs = len(starts) - 1, int(starts[-1])
    cost = starts + np.arange(tiles + 1)  # an empty tile costs something as well
    pieces = min(_PIECES, tiles)
    bounds = np.searchsorted(cost, np.arange(pieces + 1) * (cost[-1] / pieces))
    bounds[-1] = tiles
    across = -(-width // TILE)

    def several(first: int, last: int) -> None:
        run((int(bounds[first]), int(bounds[last]), across))

    spread(several, pieces, _ROWS * pairs)


def _radii(splats: FloatArray) -> FloatArray:
    """Reach times the larger standard deviation, in pixels."""
    yy = 1 / splats[:, INV_V] ** 2
    slope = splats[:, SLOPE]
    xx = 1 / splats[:, INV_U] ** 2 + slope**2 * yy
    middle, half = (xx + yy) / 2, (xx - yy) / 2
    largest = middle + np.sqrt(half**2 + (slope * yy) ** 2)
    radii: FloatArray = splats[:, REACH] * np.sqrt(largest)
    return radii


def _take(table: FloatArray, rows: npt.NDArray[np.int64]) -> FloatArray:
    """``table[rows]``."""
    out = np.empty((len(rows), table.shape[1]), np.float32)
    spread(lambda first, last: _copy(table, rows[first:last], out[first:last]), len(rows), out.size)
    return out


@_jit
def _copy(table: Any, rows: Any, out: Any) -> None:
    for i in range(rows.shape[0]):
        for k in range(table.shape[1]):
            out[i, k] = table[rows[i], k]


@_jit
def _gather(pairs: Any, terms: Any, rows: Any, sums: Any) -> None:
    """Add ``terms`` [P, k] of each splat to row ``rows[splat]`` of ``sums``, tile by tile."""
    for p in range(pairs.shape[0]):
        row = rows[pairs[p]]
        for k in range(terms.shape[1]):
            sums[row, k] += terms[p, k]
