"""Quantizers in use on ``builtin:tiny-dit``: fidelity to the uncompressed model, and bytes.

Each peer has a virtual environment of its own, outside the repository, made like this::

    python -m venv sdnq && sdnq/bin/pip install torch==2.13.0 && echo torch==2.13.0 > only.txt
    sdnq/bin/pip install -c only.txt diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 \\
        numba==0.68.1 psutil pillow
    sdnq/bin/pip install --no-deps sdnq==0.2.8
    sdnq/bin/python benchmarks/peers_diffusion.py sdnq

and for ``quanto`` with ``--no-deps optimum-quanto==0.2.7`` and ninja. A model is written by the
peer, loaded again by the peer, decoded to dense float32 layers and sampled by the code of ``dpq
eval``: the numbers are those of ``dpq eval ARTIFACT --sampling-steps 25 --count N --baseline-count
N``.

diffusers stores a copy of the timestep MLP and class table in every block. Peers quantize and store
all of them, dpq stores one; ``distinct_bytes`` counts equal tensors of a peer's file once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import peers_common as common
import torch
from torch import Tensor

from dpq_core.plugin.image_metrics import mean_squared_error, ssim
from dpq_core.run import Run, silent
from dpq_diffusion.evaluation.fidelity import latent_mse
from dpq_diffusion.evaluation.quality import evaluate_samples
from dpq_diffusion.evaluation.scorer import Scorer, class_agreement, find_scorer
from dpq_diffusion.folders import BUILTIN
from dpq_diffusion.options import EvaluateOptions
from dpq_diffusion.pipelines.conditions import Item, make_items
from dpq_diffusion.pipelines.loading import load_pipeline
from dpq_diffusion.sampling.image_pairs import ImageFidelity
from dpq_diffusion.sampling.images import ArrayImages
from dpq_diffusion.sampling.samplers import RequestedSettings, make_sampler

SOURCE = "builtin:tiny-dit"
TRANSFORMER = BUILTIN / "tiny-dit" / "transformer"


@dataclass(frozen=True)
class Settings:
    """What is drawn; as in ``suites/diffusion_policy.py``."""

    images: int = 100
    steps: int = 25
    guidance: float = 1.5
    batch: int = 50


@dataclass(frozen=True)
class Case:
    """One setting of a peer: its name of the width, and options of the peer alone."""

    width: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """A rival.

    Attributes:
        packages: distributions whose versions matter.
        cases: what is tried.
        write: case, new folder.
        read: folder -> model, in whatever dtype the peer runs in.
    """

    packages: tuple[str, ...]
    cases: tuple[Case, ...]
    write: Callable[[Case, Path], None]
    read: Callable[[Path], Any]


@dataclass(frozen=True)
class Drawn:
    """Images uint8 ``[N, H, W, C]`` and the latents of every step ``[N, steps, C, H, W]``."""

    images: Tensor
    latents: Tensor


def _dense() -> Any:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel.from_pretrained(TRANSFORMER, dtype=torch.float16).eval()


def _quanto() -> Any:
    from diffusers import DiTTransformer2DModel
    from optimum import quanto

    class Quantized(quanto.QuantizedDiffusersModel):
        base_class = DiTTransformer2DModel

    return Quantized


def _write_quanto(case: Case, out: Path) -> None:
    from optimum import quanto

    kinds = {"int8": quanto.qint8, "int4": quanto.qint4, "int2": quanto.qint2}
    # The convolution that makes patches is 0.06 % of the weights and has 16 inputs.
    model = _quanto().quantize(_dense(), weights=kinds[case.width], exclude="pos_embed.proj")
    model.save_pretrained(out)


def _read_quanto(folder: Path) -> Any:
    return _quanto().from_pretrained(folder)._wrapped


def _write_sdnq(case: Case, out: Path) -> None:
    import sdnq

    model = sdnq.sdnq_post_load_quant(_dense(), weights_dtype=case.width, **case.options)
    model.save_pretrained(out)


def _read_sdnq(folder: Path) -> Any:
    import sdnq  # enters itself in the tables of diffusers
    from diffusers import DiTTransformer2DModel

    assert sdnq.SDNQConfig
    return DiTTransformer2DModel.from_pretrained(folder, dtype=torch.float16).eval()


PEERS = {
    "quanto": Peer(
        ("optimum-quanto", "diffusers"),
        tuple(map(Case, ("int8", "int4", "int2"))),
        _write_quanto,
        _read_quanto,
    ),
    "sdnq": Peer(
        ("sdnq", "diffusers"),
        (
            *map(Case, ("int8", "uint4", "uint3", "uint2", "uint1")),
            *(Case(f"uint{bits}", {"use_codebook": True}) for bits in (4, 3, 2)),
            *(Case(f"uint{bits}", {"group_size": 64}) for bits in (3, 2)),
        ),
        _write_sdnq,
        _read_sdnq,
    ),
}


def draw(model: Any, items: list[Item], settings: Settings) -> Drawn:
    """Sample with a transformer in place of the uncompressed one."""
    pipeline = load_pipeline(SOURCE, Run(device="cpu"))
    if model is not None:
        pipeline.transformer = model
    wish = RequestedSettings(steps=settings.steps, guidance=settings.guidance, scheduler="auto")
    sampler = make_sampler(pipeline, wish)
    images, latents = [], []
    for first in range(0, len(items), settings.batch):
        seen: list[Tensor] = []
        batch = items[first : first + settings.batch]
        images.append(sampler.draw(batch, lambda _, values, seen=seen: seen.append(values.clone())))
        latents.append(torch.stack(seen, dim=1))
    return Drawn(torch.cat(images), torch.cat(latents))


def quality(drawn: Drawn, items: list[Item], scorer: Scorer) -> dict[str, float]:
    """Metrics of the samples alone."""
    images = ArrayImages(drawn.images)
    found = evaluate_samples(images, scorer.reference, scorer.extractor, progress=silent)
    labels = [item.condition.label for item in items]
    return {m.name: m.value for m in (*found, class_agreement(images, labels, scorer))}


def measure(
    peer: Peer, case: Case, items: list[Item], original: Drawn, scorer: Scorer, settings: Settings
) -> dict[str, Any]:
    """Write, read, sample and score one case."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        started = time.perf_counter()
        peer.write(case, out)
        row: dict[str, Any] = {
            "seconds": time.perf_counter() - started,
            "weight_bytes": common.file_bytes(out, (".safetensors",)),
            "folder_bytes": common.file_bytes(out),
            "distinct_bytes": common.distinct_bytes(out),
        }
        model = peer.read(out)
        common.decode(model)
    drawn = draw(model, items, settings)
    fidelity = ImageFidelity(
        mean_squared_error(drawn.images, original.images), ssim(drawn.images, original.images)
    )
    row |= {
        "psnr_dB": fidelity.psnr,
        "ssim": fidelity.ssim.mean().item(),
        "latent_mse": latent_mse(drawn.latents, original.latents).mean().item(),
    }
    return row | quality(drawn, items, scorer)


def main() -> None:
    """Measure the cases of one peer and append a record of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--images", type=int, default=Settings.images)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", type=int, action="append", help="by number; all by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings, peer = Settings(images=options.images), PEERS[options.peer]
    scorer = find_scorer(SOURCE, EvaluateOptions(), torch.device("cpu"), silent)
    assert scorer is not None
    conditions = make_sampler(
        load_pipeline(SOURCE, Run(device="cpu")), RequestedSettings(steps=1, scheduler="auto")
    ).conditions((), ())
    items = make_items(conditions, settings.images, common.SEED)
    original = draw(None, items, settings)
    baseline = quality(original, items, scorer)
    common.log({"case": "uncompressed", **baseline})
    spec = {"model": SOURCE, "peer": options.peer, **asdict(settings), "threads": options.threads}
    for number, case in enumerate(peer.cases):
        if options.case and number not in options.case:
            continue
        torch.manual_seed(common.SEED)
        row = common.attempt(lambda c=case: measure(peer, c, items, original, scorer, settings))
        common.record(spec | asdict(case), {"uncompressed": baseline, **row}, peer.packages)


if __name__ == "__main__":
    main()
