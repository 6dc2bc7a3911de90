"""Runs of fleets that can be resumed: microbatches, and the ledger that records them."""
