"""Figures drawn by matplotlib: each function takes values and returns one figure."""
