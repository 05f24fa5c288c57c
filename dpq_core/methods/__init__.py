"""One weight being quantized: codebooks, pools, sums of codewords, codes. Start at ``quantize``."""
