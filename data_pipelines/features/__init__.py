"""The feature specification, its fitted values, and the transform from raw columns to model inputs."""
