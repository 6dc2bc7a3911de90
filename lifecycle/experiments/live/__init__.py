"""Experiments in the online server: the split of its traffic, and live checks of the variants.

A variant that fails its checks gets no more traffic.
"""
