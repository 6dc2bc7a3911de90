"""Whether a run can start here, found out before it starts."""
