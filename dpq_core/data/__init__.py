"""A model on data: statistics of layer inputs, sensitivities, and quantization block by block."""
