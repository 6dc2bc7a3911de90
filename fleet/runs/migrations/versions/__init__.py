"""One module per version of the ledger's schema; released ones are never changed."""
