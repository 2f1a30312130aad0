"""Retention: when rows were stored, when filters' names were seen last, and how the last run of it went."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_STATEMENTS = (
    # constant for what is there already: no row is rewritten
    "ALTER TABLE interceptions ADD COLUMN stored_at timestamptz NOT NULL DEFAULT now()",
    "ALTER TABLE interception_facets ADD COLUMN last_seen timestamptz NOT NULL DEFAULT now()",
    """
    CREATE TABLE housekeeping (
        task text NOT NULL,
        started_at timestamptz NOT NULL,
        finished_at timestamptz NOT NULL,
        complete boolean NOT NULL,
        note text NOT NULL DEFAULT '',
        result jsonb NOT NULL,
        PRIMARY KEY (task)
    )
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
