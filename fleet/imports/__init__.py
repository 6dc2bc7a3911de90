"""Import of trained models into fleets, a module per library or format."""
