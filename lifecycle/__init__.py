"""From a trained model to one in production: gates, promotion, experiments. Decisions are pure functions."""
