"""Training of any model: objectives, optimizers, the step loop and warm starts."""
