"""Calibration: E-steps (codes) and M-steps (codebooks) on a student, with data.

What a domain hands over is ``dpq_core.data.task``.

"""
