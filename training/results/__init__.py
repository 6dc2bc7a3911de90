"""The results of a training: export, registration, evaluation, summary."""
