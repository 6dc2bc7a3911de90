"""Which version of a model is in production: registries, promotion by evidence, and the way back."""
