"""New catalogues for trained models: a new index without a training."""
