"""The report of a fleet's run: speed, cost, failures and drift, as values, as a page and as an MLflow run."""
