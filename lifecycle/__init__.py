"""From a trained model to one in production: pipelines, gates, promotion, experiments, watching.

Decisions are pure functions. Reading and writing of MLflow and stores happens around them.
"""
