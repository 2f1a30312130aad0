"""Revocations, numbered: what gateways must forget of who may use them."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    CREATE TABLE revocations (
        seq bigserial NOT NULL,
        api_key_id uuid,
        owner_id uuid,
        at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (seq),
        CONSTRAINT revocations_subject CHECK (num_nonnulls(api_key_id, owner_id) = 1)
    )
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
