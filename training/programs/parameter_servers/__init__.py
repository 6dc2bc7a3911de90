"""Training with parameter servers, for embedding tables that are too large for every worker to hold.

Plans, checkpoints and supervision are shared with the other strategies.
"""
