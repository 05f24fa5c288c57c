"""The attributes of a trained 3D Gaussian Splatting scene, as its training stored them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dpq_core.errors import SourceError

FloatArray = npt.NDArray[np.float32]

SH_REST = {0: 0, 1: 3, 2: 8, 3: 15}
"""Degree of the spherical harmonics -> coefficients beyond the constant one, per channel."""

_WIDTHS = {"positions": 3, "log_scales": 3, "rotations": 4, "sh_dc": 3}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """N Gaussians in the conventions of the Inria ``.ply`` (Kerbl et al. 2023).

    The arrays may be views into a mapped file: read-only, strided, not aligned to four bytes. Copy
    before writing to them, and before giving them to code that wants contiguous memory.

    Attributes:
        positions: float32 ``[N, 3]``, x right, y down, z forward (COLMAP's world).
        log_scales: float32 ``[N, 3]``, natural logarithm of the standard deviations.
        rotations: float32 ``[N, 4]``, quaternion w, x, y, z, not necessarily of unit length.
        opacity_logits: float32 ``[N]``; opacity = sigmoid.
        sh_dc: float32 ``[N, 3]``; colour = 0.5 + 0.2820948 * sh_dc, before the other harmonics.
        sh_rest: float32 ``[N, M, 3]``, M = 0, 3, 8 or 15 coefficients (degree 0 to 3), then RGB.
    """

    positions: FloatArray
    log_scales: FloatArray
    rotations: FloatArray
    opacity_logits: FloatArray
    sh_dc: FloatArray
    sh_rest: FloatArray

    def __post_init__(self) -> None:
        """Check dtypes and shapes; values are checked by ``check_values``.

        Raises:
            SourceError: an array has another dtype, length or width than it must have.
        """
        n = len(self)
        expected: dict[str, tuple[int, ...]] = {k: (n, width) for k, width in _WIDTHS.items()}
        expected["opacity_logits"] = (n,)
        if self.sh_rest.ndim != 3 or self.sh_rest.shape[1] not in SH_REST.values():
            raise SourceError(f"sh_rest has shape {self.sh_rest.shape}, not [N, 0|3|8|15, 3]")
        expected["sh_rest"] = (n, self.sh_rest.shape[1], 3)
        for name, shape in expected.items():
            array = getattr(self, name)
            if array.dtype != np.float32 or array.shape != shape:
                raise SourceError(f"{name} is {array.dtype} {array.shape}, not float32 {shape}")

    def __len__(self) -> int:
        """Number of Gaussians."""
        return len(self.positions)

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return {m: degree for degree, m in SH_REST.items()}[self.sh_rest.shape[1]]

    @property
    def nbytes(self) -> int:
        """Bytes of all attributes as float32."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, FloatArray]:
        """All attributes by name."""
        return {name: getattr(self, name) for name in (*_WIDTHS, "opacity_logits", "sh_rest")}

    def take(self, index: Any) -> Scene:
        """The Gaussians that a NumPy index (slice, mask, integers) picks, in its order."""
        return Scene(**{name: array[index] for name, array in self.arrays().items()})
