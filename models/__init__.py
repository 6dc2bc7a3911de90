"""Model architectures, and the layers, optimizers and indexes that they share. Nothing here depends on Spark."""
