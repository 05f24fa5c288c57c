"""Calibration of a language model: windows of text, losses, the task that the engine trains."""
