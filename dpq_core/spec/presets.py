"""Named ways to quantize: ``fast`` (data-free), ``faithful`` (the paper's choices), ``best``."""

from __future__ import annotations

from dpq_core.errors import SpecError
from dpq_core.spec.overrides import Override
from dpq_core.spec.quant_spec import QuantSpec
from dpq_core.spec.sections import AssignmentSpec, KMeansSpec, PoolSpec

PRESETS = ("fast", "faithful", "best")
"""Names of the presets; ``best`` looks at data, the others do not."""


def preset(name: str, bits: int) -> QuantSpec:
    """The spec of a preset at a nominal number of bits per weight.

    * ``fast``: shared codebooks of 256 codewords, row scales, permuted columns, nearest codewords.
    * ``faithful``: DPQ as published (docs/algorithms.md#preset-faithful): one codebook of 256 per
      group along the axis that takes fewer bytes, no scales, the greedy pool, 20 iterations of
      SR-C, and the block-diagonal assignment where there are statistics.
    * ``best``: as ``fast``, with error feedback, coordinate descent and closed-form updates of the
      codebooks on statistics of the inputs.

    Raises:
        SpecError: no such preset, or ``bits`` is not 1, 2, 3 or 4.
    """
    if name == "fast":
        return QuantSpec.preset(bits)
    if name == "faithful":
        return QuantSpec.preset(
            bits,
            K=256,
            scope="subspace",
            orientation="auto",
            row_scale=False,
            pool=PoolSpec(method="greedy"),
            kmeans=KMeansSpec(iterations=20, tail=1, init="random"),
            assignment=AssignmentSpec(method="blockdiag", updates=0),
        )
    if name == "best":
        return QuantSpec.preset(bits, assignment=AssignmentSpec(method="ldlq+icm", updates=2))
    raise SpecError(f"preset {name!r} is not one of {', '.join(PRESETS)}")


def preset_overrides(name: str | None, spec: QuantSpec) -> tuple[Override, ...]:
    """Rules of a preset, applied after the adapter's policy and before the user's rules.

    The paper compresses everything alike: ``faithful`` overrules what an adapter spends on
    sensitive tensors.
    """
    if name != "faithful":
        return ()
    return (Override("*", {"d": spec.d, "K": spec.K}),)
