"""What makes an artifact a transformers model: its files, the quantizer, the swapped modules."""
