"""Precomputed scores in a file with look-up by key."""
