"""Which spec for which tensor, so that a model fits a number of bytes and suffers least.

A plan itself is ``dpq_core.plan``.

``planner``      the plan for a budget; start here
``predict``      how well a spec will do on a weight, from a sample
``sensitivity``  how much the loss depends on each weight
``allocate``     the cheapest choice for all items within a budget
``overhead``     bytes of an artifact that are no tensors
``forecast``     time and memory that a plan will take
"""
