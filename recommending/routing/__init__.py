"""Several models in one folder: rules on columns choose the one that answers for a row."""
