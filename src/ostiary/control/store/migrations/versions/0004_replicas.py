"""What gateways tell of themselves."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    CREATE TABLE replicas (
        replica_id uuid NOT NULL,
        hostname text NOT NULL,
        mode text NOT NULL,
        build text NOT NULL,
        revision bigint NOT NULL,
        status jsonb NOT NULL,
        first_seen timestamptz NOT NULL DEFAULT now(),
        last_seen timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (replica_id)
    )
    """,
    "CREATE INDEX replicas_last_seen ON replicas (last_seen)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
