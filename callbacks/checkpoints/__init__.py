"""Checkpoints on any store: snapshot, publication, commit, fencing and download."""
