"""Classical recommenders: what users have had, fitted weights and factors, and the best candidates of every row."""
