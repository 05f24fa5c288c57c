"""Sequential quantization: block after block, with inputs from the part already quantized.

``loop``           the walk over the blocks; start here
``contract``       its options, what quantizes a tensor, the report of a segment
``quantizer``      quantizes a plan's tensors on the way, before they are written
``layer_weights``  the weights of the layers in the model, and those of finished blocks
``targets``        which layers hold the weights to be quantized
``segments``       the order: blocks, the layers between them, groups of layers within them
``capture``        how data flows through the blocks, traced on one batch
``block_runner``   runs a block, or the model up to it, over all batches
``paused_runs``    runs of a block that wait at layers while these are quantized
``reference``      the uncompressed model's inputs of the same layers, and how far they are apart
``activations``    the inputs of a block, in memory up to a budget, beyond it on disk
``block_store``    finished blocks on disk, from which a stopped run resumes
``resume_point``   the inputs of the next block on disk, so that a resumed run repeats no pass
"""
