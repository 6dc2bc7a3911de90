"""The dataset directory: manifest, blocks, shards, and its copies on this machine."""
