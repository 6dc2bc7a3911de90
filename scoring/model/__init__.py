"""Models for scoring: resolving URIs, fetching, caching and loading."""
