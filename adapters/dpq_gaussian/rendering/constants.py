"""Constants of the rasteriser, compiled into several of its kernels.

They are compiled into the kernels, whose disk cache does not notice changes here: delete the
``__pycache__`` of this package after one.
"""

from __future__ import annotations

TILE = 16
"""Pixels; a row of a tile is one vector."""

FIELDS = 12
"""Of a projected splat: mean x, y; 1 / std of x given y; slope dx/dy of the conditional mean of x;
1 / std of y; opacity; red, green, blue; depth; reach in stds; 0. With these the exponent is
-(u^2 + v^2) / 2, u = (dx - slope dy) / std(x|y), v = dy / std(y): a sum of squares, where the usual
A dx^2 + 2 B dx dy + C dy^2 of a long thin splat cancels in float32."""
MEAN_X, MEAN_Y, INV_U, SLOPE, INV_V, OPACITY, RED, GREEN, BLUE, DEPTH, REACH = range(11)

GRADIENTS = 10
"""Sums over pixels for one splat, with v the gradient of the exponent and u = dx - slope dy in
pixels: v, v u, v u^2, v dy, v dy u, v dy^2, and the gradients of red, green, blue and depth."""

MAX_ALPHA = 0.999
MIN_ALPHA = 1.0 / 255.0
MIN_TRANSMITTANCE = 1e-4
"""The thresholds of gsplat; Kerbl et al.'s code has 0.99 for the first."""

DILATION = 0.3
"""Added to both variances, in square pixels: no splat is thinner than about a pixel."""
