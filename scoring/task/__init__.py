"""Code of scoring tasks on the executors, and the planning of these tasks."""
