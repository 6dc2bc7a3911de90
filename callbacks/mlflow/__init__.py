"""Delivery of metrics, parameters, tags and artifacts to MLflow, also through an outage of its server."""
