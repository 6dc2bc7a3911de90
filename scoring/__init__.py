"""Scoring: models applied to tables, files and single rows."""
