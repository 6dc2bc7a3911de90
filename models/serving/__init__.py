"""Export of models as SavedModels, and the feature transform in their graphs."""
