"""Indexes: exact and approximate search for the best candidates, as layers of an exported model."""
