"""Metrics, baselines and explanations of a trained model."""
