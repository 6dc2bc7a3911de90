"""Backends, one file for each library that computes models."""
