"""Compress a language model, measure it beside the original, and let it write."""

import dpq

SOURCE = "builtin:tiny-llama"  # or a folder in the Hugging Face layout, or a hub id

# It reads 64 windows of text by default; a small model needs fewer.
report = dpq.compress(SOURCE, "small-llama", bits=4, samples=16)
print(f"{report.source_nbytes:,} -> {report.nbytes:,} bytes")

print(dpq.evaluate("small-llama", baseline=SOURCE, limit=2).table())

print(dpq.sample("small-llama", prompt="def area(", max_new_tokens=16).texts[0])

dpq.verify("small-llama")  # raises where a byte or an output is not what was written
