"""A small single-file artifact for the tests, without any adapter."""

from __future__ import annotations

from dpq_core.artifact.single_manifest import Attribute, FileManifest
from dpq_core.artifact.single_writer import Packed


def tiny_packed(items: int = 10, chunk_items: int = 4, **changes: object) -> Packed:
    """Two chunked streams and a whole one; bytes without meaning."""
    chunks = -(-items // chunk_items)
    manifest = FileManifest(
        adapter="toy",
        source="somewhere/scene.toy",
        fingerprint="0123",
        items=items,
        source_items=items + 2,
        chunk_items=chunk_items,
        attributes=(
            Attribute(
                name="place",
                shape=(3,),
                streams=("place",),
                spec={"step": 0.5},
                errors={"rms": 0.1},
            ),
            Attribute(name="tint", shape=(), streams=("tint",)),
        ),
        parameters={"unit": 2.5, "list": [1, 2]},
        streams={},
        versions={"dpq": "0"},
    )
    values: dict[str, object] = {
        "manifest": manifest,
        "whole": {"models": b"models!"},
        "chunked": {
            "place": [bytes([k] * (k + 1)) for k in range(chunks)],
            "tint": [b"t" * k for k in range(chunks)],
        },
        "source_nbytes": 160,
        **changes,
    }
    return Packed(**values)  # type: ignore[arg-type]
