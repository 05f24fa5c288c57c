"""Planning: a spec for every tensor, so that a model fits its budget with the least loss.

``planner``      the plan for a budget; start here
``predict``      the relative error of a spec on a weight, predicted from a sample
``plan``         the spec of every tensor from one base spec and rules by name
``policy``       the part of an adapter that plans need
``free_axes``    hidden axes that can be reordered without storing a permutation
``allocate``     the choices for all items that fit a budget with the least cost
``overhead``     bytes of an artifact besides its tensors
``forecast``     time and memory that a plan will need
"""
