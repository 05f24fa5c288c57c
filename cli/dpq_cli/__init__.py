"""dpq_cli: the dpq command."""
