"""Quantization of one weight: codebooks, pools, sums of codewords, codes. Start at ``quantize``."""
