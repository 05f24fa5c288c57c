"""Calibration: E-steps (codes) and M-steps (codebooks) on a student, with data.

``loop`` is where to start; ``dpq_core.data.task`` is what a domain hands over.
"""
