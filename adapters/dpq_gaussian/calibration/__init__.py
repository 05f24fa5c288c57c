"""Calibration of a compressed scene: training of the stored numbers on pictures."""
