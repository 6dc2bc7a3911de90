"""Validation of a candidate beside the champion: sliced metrics, thresholds, and the findings that block a promotion."""
