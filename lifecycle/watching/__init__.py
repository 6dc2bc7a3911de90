"""A model in production: whether its inputs and scores are still those of the training, and how good it is now."""
