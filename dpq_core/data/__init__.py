"""What a model does with data: statistics of inputs, sensitivity, walking block after block."""
