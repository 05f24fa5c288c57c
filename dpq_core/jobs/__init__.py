"""Whole jobs, each the order of its steps: compress, calibrate, quantize in memory."""
