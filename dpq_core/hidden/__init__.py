"""Hidden axes: units between two layers whose order is free, reordered at no cost.

Adapters name the axes of their models (``Adapter.hidden_axes``).

``axes``   what an axis is, which ones fit a plan, and reordering along them
``order``  the orders of a model while it is written
``match``  which unit of an artifact is which of the original
"""
