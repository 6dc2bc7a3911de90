"""Collectives over TCP between workers, and the tf.distribute strategy on top of them."""
