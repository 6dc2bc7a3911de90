"""Applies the migrations within the transaction that the ledger has opened; Alembic runs this file."""

from alembic import context

context.configure(**context.config.attributes["options"])
context.run_migrations()
