"""The general error of scoring; more specific ones are defined next to the code that raises them."""


class ScoringError(ValueError):
    """Raised for a table or a call that the model cannot score; the message names the column and the remedy."""
