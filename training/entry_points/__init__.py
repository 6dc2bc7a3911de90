"""The ways in other than the main job: calls for notebooks and scripts, and the commands runs and doctor."""
