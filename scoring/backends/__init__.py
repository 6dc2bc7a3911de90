"""Libraries that compute a model's outputs, one file each."""
