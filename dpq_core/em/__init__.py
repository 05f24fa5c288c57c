"""Calibration: E-steps (codes) and M-steps (codebooks) on a student, with data.

What a domain hands over is ``dpq_core.calibration``.

``artifact``    stage 2 of a whole artifact: open, calibrate, write
``loop``        ``calibrate``: the run from the first phase to the best state
``settings``    every choice of the loop
``report``      what a run did, as data
``phases``      what a phase minimises: the task's loss, or a block's distance to its teacher
``train``       one phase: M-steps with E-steps and validations between them
``steps``       the M-step
``estep``       the E-step: new codes for old codebooks
``gradient``    targets of the E-step that follow the loss (PV-Tuning)
``moments``     moving averages of what the layers see
``candidates``  a phase that chooses codes among candidates
``layers``      the quantized weights of a student; ``prepare_student`` for adapters
``state``       the state of an unfinished run, for resuming
``stop``        Ctrl-C between two steps
``rewrite``     a new artifact from an old one, with other values
"""
