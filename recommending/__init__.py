"""Recommend items: top-k lists, routers over several models, re-ranking, and indexes of items."""
