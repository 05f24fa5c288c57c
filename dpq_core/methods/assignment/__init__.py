"""Codes and codewords chosen for the output of a layer instead of its weights.

``dpq_core.methods.output_aware`` applies them to one tensor; the E-step of calibration
(``dpq_core.calibrate.estep``) applies them to all tensors of a model. A new method of assignment
is added here.

``assign``         codes for one layer by any method; start here
``objective``      the output error that is minimised, for some rows at a time
``hessian``        the damped second moment of the layer's inputs, and its factors
``sweeps``         error feedback and coordinate descent over the columns
``compiled``       the same in compiled loops, for one codeword per subvector on the CPU
``encoders``       codes of a few columns, which are one step of a sweep
``least_squares``  closed-form updates of codebooks, pools and row scales
``normal``         the normal equations of these updates
"""
