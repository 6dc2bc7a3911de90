"""Forms of scores, and checks of outputs."""
