"""Plots: each function takes values and returns one figure."""
