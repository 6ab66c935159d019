"""Triton kernels of the memory-bound parts, used on a GPU."""
