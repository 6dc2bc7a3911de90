"""What is kept of a run: its folder, its events, its MLflow run."""
