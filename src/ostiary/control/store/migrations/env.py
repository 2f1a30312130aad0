"""Alembic's entry: runs in the transaction of the connection that `migrate` hands over."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
