"""One module per version of the ledger's schema. A released version is never changed."""
