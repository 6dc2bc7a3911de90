"""The records of a run: its folder, its events, its MLflow run."""
