"""Worked problems: one folder each, with its configuration and the SQL that builds its table."""
