"""Quality of samples, and their fidelity to those of the uncompressed model."""
