"""Validation of a candidate beside the champion: sliced metrics, thresholds, and findings that block a promotion."""
