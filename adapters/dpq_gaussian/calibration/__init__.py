"""Calibration of a compressed scene: its stored numbers are trained so that pictures get better."""
