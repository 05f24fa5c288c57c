"""The module that ``model_index.json`` of a converted class-conditional LDM names.

diffusers imports it by this name, which lies in folders on disk; the class is in `pipelines`.
"""

from dpq_diffusion.pipelines.class_pipelines import ClassEmbedder

__all__ = ["ClassEmbedder"]
