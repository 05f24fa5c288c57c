"""LPIPS (Zhang et al. 2018) on VGG-16, without torchvision.

The convolutions come from a file that the user names; the five linear layers on top, version 0.1,
ship with torchmetrics.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpq_core.errors import SourceError

FILE = "vgg16-397923af.pth"
URL = f"https://download.pytorch.org/models/{FILE}"
SHA256_START = "397923af"  # torch.hub's files carry the start of their hash in their names

_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions between two poolings; features are taken after each group."""

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-8
_LEAST = 16  # pixels: four poolings


class LPIPS(nn.Module):
    """The distance itself; smaller is closer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._ends: list[int] = []
        width = 3
        for group in _WIDTHS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for channels in group:
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
                width = channels
            self._ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.linear = nn.ParameterList(torch.zeros(group[-1]) for group in _WIDTHS)
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, picture: Tensor, reference: Tensor) -> float:
        """Distance of two pictures ``[H, W, 3]`` in [0, 1].

        Raises:
            SourceError: they are too small for four poolings.
        """
        if min(picture.shape[:2]) < _LEAST:
            raise SourceError(f"LPIPS needs pictures of at least {_LEAST} x {_LEAST} pixels")
        pair = torch.stack([picture, reference]).to(self.linear[0].device)
        pair = pair.permute(0, 3, 1, 2) * 2 - 1  # [2, 3, H, W]
        shift, scale = (pair.new_tensor(v).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE))
        values = (pair - shift) / scale
        total, group = 0.0, 0
        for at, layer in enumerate(self.features):
            values = layer(values)
            if at != self._ends[group]:
                continue
            length = torch.sqrt(_EPSILON + values.square().sum(1, keepdim=True))
            a, b = values / length  # [channels, h, w] each
            weights = self.linear[group].view(-1, 1, 1)
            total += (weights * (a - b).square()).sum(0).mean().item()
            group = min(group + 1, len(_WIDTHS) - 1)
        return total


def load_lpips(path: str, device: torch.device | str = "cpu") -> LPIPS:
    """LPIPS with the convolutions of a file.

    Args:
        path: torchvision's VGG-16 weights as published, or any ``.safetensors`` with the names
            ``features.0.weight`` and so on.
        device: where it runs.

    Raises:
        SourceError: they are missing, damaged, or the weights of another network.
    """
    network = LPIPS()
    state = {k: v for k, v in _read(Path(path)).items() if str(k).startswith("features.")}
    state |= {f"linear.{i}": weights for i, weights in enumerate(_linear())}
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError):
        raise SourceError(f"{path}: not the weights of VGG-16; get {FILE} from {URL}") from None
    return network.to(device)


def _read(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise SourceError(f"{path}: no such file of VGG-16 weights; get {FILE} from {URL}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_hash(path)
        state = torch.load(  # noqa: TID251 - published as a pickle only; its hash is checked above
            path, map_location="cpu", weights_only=True
        )
    except (OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"{path}: not a readable file of weights ({reason})") from None
    if not isinstance(state, Mapping):
        raise SourceError(f"{path}: not a plain state dict of tensors")
    return state


def _check_hash(path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(SHA256_START):
        raise SourceError(
            f"{path}: sha256 {found[:16]}... is not that of {FILE}; get it from {URL}, or convert "
            "the weights to .safetensors"
        )


def _linear() -> list[Tensor]:
    """The weights of the channels of each group ``[channels]``, from torchmetrics' package."""
    from torchmetrics.functional import image

    path = Path(image.__file__).parent / "lpips_models" / "vgg.pth"
    state = torch.load(  # noqa: TID251 - a file of an installed package, as trusted as its code
        path, map_location="cpu", weights_only=True
    )
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(len(_WIDTHS))]
