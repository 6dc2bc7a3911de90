"""A job and what it needs: a prepared run, its sources and warm start, the checks of its cluster."""
