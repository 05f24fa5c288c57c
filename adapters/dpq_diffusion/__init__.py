"""dpq_diffusion: diffusion models (DiT, LDM, the diffusers family).

``import dpq_diffusion`` teaches diffusers to load dpq artifacts::

    import dpq_diffusion
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained("my-artifact")
"""

from dpq_diffusion.hub.registration import register

register()
