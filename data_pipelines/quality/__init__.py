"""Is this data fit to learn from: splits, leakage, profiles, validation, and the page that shows them."""
