"""From a recipe's tables to a model in production, in one command: each stage is checked, recorded, and done once."""
