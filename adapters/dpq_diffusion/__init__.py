"""dpq_diffusion: diffusion models (DiT, LDM, the diffusers family).

``import dpq_diffusion`` teaches diffusers to load dpq artifacts::

    import dpq_diffusion
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained("my-artifact")

``DPQConfig(bits=2)`` quantizes an uncompressed model while diffusers loads it.
"""

from typing import TYPE_CHECKING

from dpq_diffusion.hub.registration import register

if TYPE_CHECKING:
    from dpq_diffusion.hub.quantizer import DPQConfig

__all__ = ["DPQConfig"]

register()


def __getattr__(name: str) -> object:
    """Import ``DPQConfig``, and diffusers with it, when it is first used."""
    if name == "DPQConfig":
        from dpq_diffusion.hub.quantizer import DPQConfig

        return DPQConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
