"""Named ways to quantize: ``standard``, ``best`` and ``paper``."""

from __future__ import annotations

from dpq_core.errors import SpecError
from dpq_core.spec.overrides import Override
from dpq_core.spec.quant_spec import QuantSpec
from dpq_core.spec.sections import AssignmentSpec, KMeansSpec, PoolSpec

PRESETS = ("standard", "best", "paper")
"""Names of the presets."""


def preset(name: str, bits: int, *, data: bool = False, trellis: bool = False) -> QuantSpec:
    """The spec of a preset at a nominal number of bits per weight.

    * ``standard``: permuted columns, shared codebooks of 256 codewords and row scales; or trellis
      codes. With data: error feedback, coordinate descent and a closed-form update of the codebooks
      on statistics of the inputs; without data: the nearest codewords.
    * ``best``: the spec of ``standard`` with another round of updates; jobs plan the bytes tensor
      by tensor, and calibrate afterwards.
    * ``paper``: DPQ as published (docs/algorithms.md#preset-paper): one codebook of 256 per group
      along the axis that takes fewer bytes, no scales, the greedy pool, 20 iterations of SR-C, and
      the block-diagonal assignment where there are statistics.

    Args:
        name: one of ``PRESETS``.
        bits: 1, 2, 3 or 4.
        data: whether there will be statistics of the inputs.
        trellis: whether ``standard`` and ``best`` store trellis codes, in place of codes of learned
            codebooks.

    Raises:
        SpecError: no such preset, or ``bits`` is not 1, 2, 3 or 4.
    """
    if name == "paper":
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
    if name not in PRESETS:
        raise SpecError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
    spec = QuantSpec.preset(bits)
    if trellis:
        spec = spec.replace(trellis_rate=float(bits))
    if not data:
        return spec
    best = name == "best"
    assignment = AssignmentSpec(method="ldlq+icm", updates=2 if best else 1)
    if trellis:  # nothing to update; a second sweep gains 1 %
        assignment = AssignmentSpec(method="ldlq+icm", sweeps=3 if best else 1, updates=0)
    return spec.replace(assignment=assignment)


def preset_overrides(name: str | None, spec: QuantSpec) -> tuple[Override, ...]:
    """Rules of a preset, applied after the adapter's policy and before the user's rules.

    The paper compresses everything alike: ``paper`` overrules what an adapter spends on sensitive
    tensors.
    """
    if name != "paper":
        return ()
    return (Override("*", {"d": spec.d, "K": spec.K}),)
