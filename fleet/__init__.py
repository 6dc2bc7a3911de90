"""Fleets: thousands of small models over the columns of one wide table, scored in one pass."""
