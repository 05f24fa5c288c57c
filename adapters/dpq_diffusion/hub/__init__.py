"""The place of dpq in diffusers and transformers: registration, quantizers, configs, model card."""
