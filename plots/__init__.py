"""One figure per function: values in, figure out."""
