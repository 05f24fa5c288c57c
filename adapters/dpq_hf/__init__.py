"""What adapters of Hugging Face libraries (transformers, diffusers) share.

``sources``                 model folders, hub ids, downloads
``import_hook``             registration with a library once it is imported
``activation_mark``         names that make a library without dpq refuse an artifact
``conv1d``                  Conv1D, whose weight is stored transposed, and its Linear
``stored_config``           ``quantization_config`` of a ``config.json``
``loading_hooks``           hooks of ``from_pretrained`` that all libraries have
``transformers_quantizer``  the quantizer of transformers, which adapters subclass
``quantize_loaded``         quantization of a dense model while it is loaded
``library_methods``         methods of the libraries' classes that have to know quantized weights
``peft_methods``            methods of peft that look into a layer's weight
``saved_state``             the state and the config that ``save_pretrained`` writes
``model_card``              the ``README.md`` of an artifact
"""
