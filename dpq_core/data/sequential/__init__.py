"""Quantization with data, block after block: every layer sees what the quantized part makes.

``loop``          the walk over the blocks; start here
``quantizer``     quantizes a plan's tensors on the way, before they are written
``targets``       which layers hold the weights to be quantized
``segments``      the order: blocks, what is between them, stages within them
``capture``       how data flows through the blocks, traced once
``block_runner``  runs a block, or the model up to it, over all batches
``activations``   inputs of a block, in memory up to a budget, beyond it on disk
``block_store``   finished blocks on disk, for resuming
"""
