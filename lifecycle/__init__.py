"""Lifecycle of a trained model up to production: pipelines, gates, promotion, experiments, watching.

Decisions are pure functions. Reading and writing of MLflow and stores happens around them.
"""
