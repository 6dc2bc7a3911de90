"""The configuration of a run: its fields, the rules between them, recipes and the command line."""
