"""Codes and codewords that suit the output of a layer, not its weights.

``dpq_core.methods.output_aware`` applies this to one tensor; the E-step of calibration
(``dpq_core.calibrate.estep``) applies it to all tensors of a model. A new method of assignment
is added here.

``assign``         codes for one layer by any method; start here
``objective``      the output error that is minimised, for some rows at a time
``hessian``        the damped second moment of the layer's inputs, and its factors
``sweeps``         error feedback and coordinate descent over the columns
``encoders``       one step of a sweep: the codes of a few columns
``least_squares``  closed-form updates of codebooks, pools and row scales
``normal``         the normal equations of these updates
"""
