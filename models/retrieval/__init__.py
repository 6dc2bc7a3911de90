"""Towers, losses and training steps of retrieval models."""
