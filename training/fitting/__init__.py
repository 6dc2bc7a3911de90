"""What runs inside a rank: data, strategy, the ring of workers, ``model.fit`` and what goes along with it."""
