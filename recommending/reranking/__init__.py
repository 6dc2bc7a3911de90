"""Re-ranking of lists of candidates by categories, diversity, interests, boosts and availability."""
