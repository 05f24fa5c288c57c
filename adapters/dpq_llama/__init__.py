"""dpq_llama: decoder-only language models of transformers.

``import dpq_llama`` teaches transformers to load dpq artifacts::

    import dpq_llama
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("my-artifact")

``DPQConfig(bits=2)`` quantizes an uncompressed model while transformers loads it.
"""

from typing import TYPE_CHECKING

from dpq_llama.hub.registration import register

if TYPE_CHECKING:
    from dpq_llama.hub.quantizer import DPQConfig

__all__ = ["DPQConfig"]

register()


def __getattr__(name: str) -> object:
    """Import ``DPQConfig``, and transformers with it, when it is first used."""
    if name == "DPQConfig":
        from dpq_llama.hub.quantizer import DPQConfig

        return DPQConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
