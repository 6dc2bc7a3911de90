"""Metrics and their intervals: one of each, for training, gates and experiments."""
