"""Second moments of the inputs of layers on some data, collected by hooks.

``hooks``         ``collect`` and ``Collector``
``moment``        a running mean of x x^T, or of its diagonal
``layer_inputs``  how the input of a layer becomes rows x of y = x W^T
"""

from dpq_core.data.statistics.hooks import (
    CollectOptions,
    Collector,
    Diverged,
    LayerStatistics,
    collect,
)

__all__ = ["CollectOptions", "Collector", "Diverged", "LayerStatistics", "collect"]
