"""Faults on purpose: killed workers, hangs, and servers that are slow or away."""
