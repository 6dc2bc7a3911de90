"""A run's results for people: report, model card, summary and notebook views."""
