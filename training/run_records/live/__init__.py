"""The live view of a run: its screen, its lines and the state that they show."""
