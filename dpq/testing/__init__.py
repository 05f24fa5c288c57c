"""The test classes that an adapter's author subclasses (needs pytest).

``TensorAdapterContract`` is for a ``TensorAdapter``, ``FileAdapterContract`` for a ``FileAdapter``.
Two class attributes are enough::

    class TestMyAdapter(TensorAdapterContract):
        adapter_class = MyAdapter
        source_name = "builtin:small"  # or override the ``source`` fixture

Every capability that the adapter has is tested, on the source and on an artifact made of it.
"""

from dpq.testing.adapter import AdapterContract
from dpq.testing.file_adapter import FileAdapterContract
from dpq.testing.tensor_adapter import TensorAdapterContract

__all__ = ["AdapterContract", "FileAdapterContract", "TensorAdapterContract"]
