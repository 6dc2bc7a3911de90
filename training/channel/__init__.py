"""How processes of a run speak to each other."""
