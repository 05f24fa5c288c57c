"""Models of several components: own weight files, local names, resume, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from artifact_model import make_writer, snapshot, stored_of, tiny_plan
from safetensors import safe_open

from dpq_core.artifact import Artifact
from dpq_core.artifact.shards import lay_out
from dpq_core.errors import ArtifactError
from dpq_core.tensor.plan import Plan

COMPONENTS = {"unet": "unet/weights", "te": "te/model", "vae": "vae/weights"}


def component_plan(*components: str) -> Plan:
    """The tiny model once for each component."""
    return Plan(tuple(replace(t, name=f"{c}/{t.name}") for c in components for t in tiny_plan()))


def write_components(out: Path, plan: Plan, **options) -> Artifact:
    with make_writer(out, plan, weights=COMPONENTS, **options) as writer:
        for tensor in plan:
            if tensor.name not in writer.done:
                writer.write(tensor.name, stored_of(tensor))
        return writer.finish()


@pytest.mark.parametrize("shard_bytes", [130, 2**20])
def test_components_have_weight_files_of_their_own(tmp_path: Path, shard_bytes: int) -> None:
    """F3, F12: names lack the prefix in the file, have it in the manifest; one may be empty."""
    plan = component_plan("te", "unet")
    artifact = write_components(tmp_path / "out", plan, shard_bytes=shard_bytes)
    assert artifact.problems() == []
    assert artifact.names() == tuple(t.name for t in plan)
    for tensor in plan:
        for name, value in stored_of(tensor).items():
            assert torch.equal(
                artifact.read_parts(tensor.name)[name[len(tensor.name) + 1 :]], value
            )
    local = {name for t in tiny_plan() for name in t.stored()}
    for component, count in (("te", len(local)), ("unet", len(local)), ("vae", 0)):
        found = []
        for file in (tmp_path / "out" / component).glob("*.safetensors"):
            with safe_open(file, framework="pt") as handle:
                found += list(handle.keys())
        assert len(found) == count
        assert set(found) <= local
    indices = sorted((tmp_path / "out").glob("*/*.index.json"))
    assert len(indices) == (2 if shard_bytes == 130 else 0)


def test_components_resume(tmp_path: Path) -> None:
    """F23, with a stop between the components."""
    plan = component_plan("unet", "te")
    with make_writer(tmp_path / "out", plan, weights=COMPONENTS) as writer:
        for tensor in list(plan)[:9]:
            writer.write(tensor.name, stored_of(tensor))
    write_components(tmp_path / "out", plan, resume=True)
    write_components(tmp_path / "whole", plan)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


@pytest.mark.parametrize(
    ("components", "message"),
    [(("unet", "other"), "belongs to no component"), (("unet", "te", "unet"), "the same name")],
)
def test_wrong_components(tmp_path: Path, components: tuple[str, ...], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        make_writer(tmp_path / "out", component_plan(*components), weights=COMPONENTS)


def test_the_tensors_of_a_component_stand_together() -> None:
    first, *rest = component_plan("unet", "te")
    with pytest.raises(ArtifactError, match="'unet' do not stand together"):
        lay_out(Plan((*rest, first)), COMPONENTS, 2**20)
