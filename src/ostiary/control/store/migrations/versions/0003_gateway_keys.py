"""Gateway keys: by which gateways that run elsewhere are known."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    CREATE TABLE ai_gateway_keys (
        id uuid NOT NULL,
        name text NOT NULL,
        key_prefix text NOT NULL,
        key_sha256 bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        last_heartbeat_at timestamptz,
        PRIMARY KEY (id),
        CONSTRAINT ai_gateway_keys_name UNIQUE (name),
        CONSTRAINT ai_gateway_keys_prefix UNIQUE (key_prefix),
        CONSTRAINT ai_gateway_keys_sha256 UNIQUE (key_sha256)
    )
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
