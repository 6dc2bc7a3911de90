"""Hyper-parameter search over the cluster."""
