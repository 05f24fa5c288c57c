"""Every choice that decides bytes: the spec of a tensor, its sections, presets and overrides.

``quant_spec``  the spec of one tensor: versioned, validated, unknown keys refused
``bits``        sizes of the presets, and what a trellis needs of the other fields
``sections``    its nested sections: k-means, pool, assignment
``changes``     changes of a spec as text
``presets``     named specs: ``standard``, ``best``, ``paper``
``overrides``   rules that change the spec of the tensors whose name matches a pattern
"""

from dpq_core.spec.changes import parse_changes
from dpq_core.spec.overrides import Override, apply_overrides
from dpq_core.spec.presets import PRESETS, preset, preset_overrides
from dpq_core.spec.quant_spec import (
    CODEBOOK_DTYPES,
    CONV_LAYOUTS,
    MAX_D,
    MAX_K,
    MAX_STAGES,
    ORIENTATIONS,
    PRESET_D,
    SCOPES,
    SPEC_VERSION,
    TRANSFORMS,
    QuantSpec,
    keys_of,
)
from dpq_core.spec.sections import (
    ASSIGNMENTS,
    INITS,
    POOLS,
    AssignmentSpec,
    KMeansSpec,
    PoolSpec,
)

__all__ = [
    "ASSIGNMENTS",
    "CODEBOOK_DTYPES",
    "CONV_LAYOUTS",
    "INITS",
    "MAX_D",
    "MAX_K",
    "MAX_STAGES",
    "ORIENTATIONS",
    "POOLS",
    "PRESETS",
    "PRESET_D",
    "SCOPES",
    "SPEC_VERSION",
    "TRANSFORMS",
    "AssignmentSpec",
    "KMeansSpec",
    "Override",
    "PoolSpec",
    "QuantSpec",
    "apply_overrides",
    "keys_of",
    "parse_changes",
    "preset",
    "preset_overrides",
]
