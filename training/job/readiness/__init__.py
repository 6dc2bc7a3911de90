"""Preflight checks: what a run needs, checked before it starts."""
