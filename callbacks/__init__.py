"""Keras callbacks for any tf.distribute strategy, one per file."""
