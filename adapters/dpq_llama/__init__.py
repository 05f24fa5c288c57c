"""dpq_llama: LLaMA-style causal language models.

``import dpq_llama`` teaches transformers to load dpq artifacts::

    import dpq_llama
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("my-artifact")
"""

from dpq_llama.hub.registration import register

register()
