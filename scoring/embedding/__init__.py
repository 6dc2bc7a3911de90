"""Embeddings of texts by an encoder that the user has, with a cache of their vectors."""
