"""The contract of adapters, their options, and the registry that finds them."""
