"""Training of fleets: many targets over one table, learnt in one pass as stacked models."""
