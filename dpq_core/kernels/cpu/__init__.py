"""Compiled loops for the CPU (numba and LLVM), imported when they are first used."""
