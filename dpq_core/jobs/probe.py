"""The probe: outputs on a fixed input, stored with an artifact and compared when it is verified.

Hashes prove that the files are whole; the probe proves that the loaded model is the one that was
written (transformers silently replaces unknown quantization by random weights).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from dpq_core.artifact import Artifact, ArtifactWriter
from dpq_core.errors import ArtifactError
from dpq_core.plugin.adapter import Adapter, Probes
from dpq_core.run import Run

PROBE_NAME = "probe.safetensors"

MAX_ARTIFACT_BYTES = 256 << 20
"""Larger artifacts get no probe: loading them would set the peak memory of compressing them."""

ENTRY_BYTES = 256
"""Most bytes that the probe adds to the manifest."""

TOLERANCE = 0.02
"""Allowed difference relative to the RMS of the stored output, for other kernels' rounding."""


@dataclass(frozen=True)
class ProbeResult:
    """The largest difference over all outputs relative to their RMS, and whether it is allowed."""

    max_difference: float
    ok: bool


def store_probe(
    adapter: Adapter, writer: ArtifactWriter, run: Run, budget: int | None = None
) -> None:
    """Load the nearly finished artifact, run it on the adapter's fixed input, store the outputs.

    Args:
        adapter: adapter of the artifact.
        writer: writer that has written everything else.
        run: device and seed.
        budget: largest size of the whole artifact in bytes; a probe that exceeds it is left out.
    """
    if not isinstance(adapter, Probes) or writer.nbytes > MAX_ARTIFACT_BYTES:
        return
    outputs = adapter.probe(writer.preview(), run)
    content = save({name: t.float().cpu().contiguous() for name, t in outputs.items()})
    size = writer.nbytes + len(writer.manifest_draft.to_bytes()) + ENTRY_BYTES
    if budget is None or size + len(content) <= budget:
        writer.add_file(PROBE_NAME, content)


def check_probe(adapter: Adapter, artifact: Artifact, run: Run) -> ProbeResult | None:
    """Run the artifact again and compare with the probe; None where no probe is stored.

    Raises:
        ArtifactError: the stored probe is unreadable or names other outputs.
    """
    path = artifact.path / PROBE_NAME
    if not path.is_file() or not isinstance(adapter, Probes):
        return None
    try:
        stored = load(path.read_bytes())
    except SafetensorError as error:
        raise ArtifactError(f"{path}: the stored probe is unreadable ({error})") from None
    outputs = adapter.probe(artifact, run)
    if {n: t.shape for n, t in stored.items()} != {n: t.shape for n, t in outputs.items()}:
        raise ArtifactError(f"{path}: the stored probe has other outputs than the loaded model")
    worst = max(_difference(outputs[name].float().cpu(), stored[name]) for name in stored)
    return ProbeResult(worst, worst <= TOLERANCE)


def _difference(output: torch.Tensor, stored: torch.Tensor) -> float:
    rms = float(stored.square().mean().sqrt())
    worst = float((output - stored).abs().max())
    return worst / rms if rms else worst
