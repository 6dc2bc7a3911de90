"""Data quality: splits, leakage, profiles, validation, and the page that shows them."""
