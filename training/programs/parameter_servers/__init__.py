"""Training with parameter servers, for embedding tables that are too large for every worker to hold.

Plans, checkpoints and supervision are those of the other strategies.
"""
