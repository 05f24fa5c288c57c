"""What families of language models have in common: layers, sensitive tensors, hidden units."""
