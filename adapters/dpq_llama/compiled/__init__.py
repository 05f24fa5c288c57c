"""The compiled decode step: one call per token of a llama-shaped decoder on the CPU."""
