"""The training of one rank: data, strategy, model, callbacks and ``model.fit``."""
