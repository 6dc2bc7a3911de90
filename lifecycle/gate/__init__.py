"""Validation of a candidate against the champion: sliced metrics, thresholds, and findings that block a promotion."""
