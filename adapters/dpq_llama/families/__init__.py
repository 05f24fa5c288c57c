"""The architectures that the adapter knows: their tensors, and how each is compressed."""
