"""What adapters of Hugging Face libraries share: loading hooks, guards, stored configurations."""
