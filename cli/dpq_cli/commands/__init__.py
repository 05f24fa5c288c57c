"""One file per command; heavy imports happen inside the functions."""
