"""Migrations of the ledger's schema, which Alembic applies."""
