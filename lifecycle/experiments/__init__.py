"""Experiments: assignment of units to variants, their exposures and actions, the analysis, and bandits."""
