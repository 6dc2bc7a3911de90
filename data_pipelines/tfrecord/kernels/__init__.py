"""Numba kernels of the TFRecord codec."""
