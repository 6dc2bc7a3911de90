"""Reading: batches of a dataset in a reproducible order, and files from other tools."""
