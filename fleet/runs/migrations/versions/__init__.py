"""One module per version of the ledger's schema; what has been released is never changed."""
