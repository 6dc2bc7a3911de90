"""From a trained model to one in production: gates, promotion, experiments.

Decisions are pure functions; MLflow and stores are at the edge.
"""
