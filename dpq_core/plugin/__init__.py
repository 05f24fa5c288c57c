"""What a domain hands to dpq: the adapter contract, its options, and the registry that finds it."""
