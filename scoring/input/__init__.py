"""Inputs of models: columns, their types, and the sources of rows."""
