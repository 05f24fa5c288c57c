"""Export of a language model, compressed or not, to formats that need no dpq.

``source``         the dense tensors, config and files of a model, read one at a time
``folder``         a folder in the Hugging Face layout
``gguf_file``      a GGUF file, which llama.cpp runs
``gguf_settings``  architecture and settings of a model, as GGUF writes them
``gguf_tokens``    the tokenizer of a model, as GGUF writes it
"""
