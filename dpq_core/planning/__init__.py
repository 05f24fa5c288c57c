"""Which spec for which tensor, so that a model fits a number of bytes and suffers least.

``planner``      the plan for a budget; start here
``predict``      how well a spec will do on a weight, from a sample
``plan``         the spec of every tensor from one base spec and rules by name
``policy``       what a plan asks of an adapter
``free_axes``    hidden axes that can be reordered at no cost
``allocate``     the cheapest choice for all items within a budget
``overhead``     bytes of an artifact that are no tensors
``forecast``     time and memory that a plan will take
"""
