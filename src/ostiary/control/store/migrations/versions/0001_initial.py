"""Everything there is at first: people, providers, ingest, and what is recorded.

Written out rather than made from `tables.py`, which goes on changing. The weekly partitions are made by
`control.partitions`; here are only the default ones, for what no week holds.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_PARTITIONED = (
    "interceptions",
    "token_usages",
    "user_prompts",
    "tool_usages",
    "model_thoughts",
    "interception_details",
)

_STATEMENTS = (
    """
    CREATE TABLE users (
        id uuid NOT NULL,
        username text NOT NULL,
        email text NOT NULL DEFAULT '',
        display_name text NOT NULL DEFAULT '',
        role text NOT NULL,
        status text NOT NULL DEFAULT 'active',
        deleted boolean NOT NULL DEFAULT false,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (id),
        CONSTRAINT users_role CHECK (role in ('owner', 'admin', 'auditor', 'member')),
        CONSTRAINT users_status CHECK (status in ('active', 'suspended'))
    )
    """,
    "CREATE UNIQUE INDEX users_username ON users (lower(username)) WHERE not deleted",
    """
    CREATE TABLE tokens (
        id uuid NOT NULL,
        user_id uuid NOT NULL,
        name text NOT NULL,
        prefix text NOT NULL,
        token_sha256 bytea NOT NULL,
        kind text NOT NULL DEFAULT 'user',
        expires_at timestamptz,
        revoked_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (id),
        FOREIGN KEY(user_id) REFERENCES users (id),
        UNIQUE (token_sha256)
    )
    """,
    "CREATE INDEX tokens_user ON tokens (user_id)",
    """
    CREATE TABLE audit_log (
        id uuid NOT NULL,
        at timestamptz NOT NULL DEFAULT now(),
        actor_id uuid,
        actor text NOT NULL,
        action text NOT NULL,
        resource_type text NOT NULL,
        resource_id text NOT NULL,
        resource_name text NOT NULL DEFAULT '',
        before jsonb,
        after jsonb,
        additional jsonb,
        source_ip text NOT NULL DEFAULT '',
        request_id text NOT NULL DEFAULT '',
        PRIMARY KEY (id)
    )
    """,
    "CREATE INDEX audit_log_at ON audit_log (at)",
    """
    CREATE TABLE vault_keys (
        key_id text NOT NULL,
        check_value bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (key_id)
    )
    """,
    """
    CREATE TABLE ai_providers (
        id uuid NOT NULL,
        type text NOT NULL,
        name text NOT NULL,
        display_name text NOT NULL DEFAULT '',
        icon text NOT NULL DEFAULT '',
        enabled boolean NOT NULL DEFAULT true,
        deleted boolean NOT NULL DEFAULT false,
        base_url text NOT NULL,
        settings bytea,
        settings_key_id text,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (id),
        CONSTRAINT ai_providers_name CHECK (name ~ '^[a-z0-9]+(-[a-z0-9]+)*$'),
        FOREIGN KEY(settings_key_id) REFERENCES vault_keys (key_id)
    )
    """,
    "CREATE UNIQUE INDEX ai_providers_live_name ON ai_providers (name) WHERE not deleted",
    """
    CREATE TABLE ai_provider_keys (
        id uuid NOT NULL,
        provider_id uuid NOT NULL,
        position integer NOT NULL,
        api_key bytea NOT NULL,
        vault_key_id text NOT NULL,
        masked text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (id),
        CONSTRAINT ai_provider_keys_position UNIQUE (provider_id, position) DEFERRABLE,
        FOREIGN KEY(provider_id) REFERENCES ai_providers (id),
        FOREIGN KEY(vault_key_id) REFERENCES vault_keys (key_id)
    )
    """,
    """
    CREATE TABLE provider_revisions (
        revision bigserial NOT NULL,
        at timestamptz NOT NULL DEFAULT now(),
        actor text NOT NULL,
        reason text NOT NULL,
        PRIMARY KEY (revision)
    )
    """,
    """
    CREATE TABLE journals (
        journal_id uuid NOT NULL,
        acked_seq bigint NOT NULL,
        stored bigint NOT NULL DEFAULT 0,
        duplicate bigint NOT NULL DEFAULT 0,
        rejected bigint NOT NULL DEFAULT 0,
        gone boolean NOT NULL DEFAULT false,
        first_seen timestamptz NOT NULL DEFAULT now(),
        last_seen timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (journal_id)
    )
    """,
    """
    CREATE TABLE ingest_rejected (
        journal_id uuid NOT NULL,
        seq bigint NOT NULL,
        reason text NOT NULL,
        payload bytea NOT NULL,
        at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (journal_id, seq)
    )
    """,
    """
    CREATE TABLE interceptions (
        id uuid NOT NULL,
        initiator_id uuid NOT NULL,
        api_key_id uuid NOT NULL,
        provider text NOT NULL,
        provider_name text NOT NULL,
        model text NOT NULL,
        route text NOT NULL,
        route_kind text NOT NULL DEFAULT 'bridged',
        streaming boolean NOT NULL,
        started_at timestamptz NOT NULL,
        ended_at timestamptz,
        client text,
        client_session_id text,
        thread_parent_id uuid,
        thread_root_id uuid,
        session_id text NOT NULL,
        correlating_tool_call_id text,
        credential_kind text NOT NULL,
        credential_hint text NOT NULL DEFAULT '',
        revision bigint NOT NULL DEFAULT 0,
        request_id text NOT NULL DEFAULT '',
        outcome text,
        status_code integer,
        error_type text,
        error_message text,
        provider_response_id text,
        response_model text,
        finish_reason text,
        unparsed boolean NOT NULL DEFAULT false,
        metadata jsonb,
        agent_firewall_session_id uuid,
        agent_firewall_sequence_number integer,
        journal_id uuid NOT NULL,
        PRIMARY KEY (id)
    ) PARTITION BY RANGE (id)
    """,
    "CREATE INDEX interceptions_initiator_newest ON interceptions (initiator_id, started_at, id)",
    "CREATE INDEX interceptions_newest ON interceptions (started_at, id)",
    "CREATE INDEX interceptions_open ON interceptions (journal_id) WHERE ended_at is null",
    """
    CREATE INDEX interceptions_orphans ON interceptions (correlating_tool_call_id)
    WHERE correlating_tool_call_id is not null and thread_parent_id is null
    """,
    "CREATE INDEX interceptions_session ON interceptions (session_id)",
    """
    CREATE INDEX interceptions_thread_root ON interceptions (thread_root_id)
    WHERE thread_root_id is not null
    """,
    """
    CREATE TABLE token_usages (
        interception_id uuid NOT NULL,
        id uuid NOT NULL,
        provider_response_id text NOT NULL DEFAULT '',
        input_tokens bigint NOT NULL,
        output_tokens bigint NOT NULL,
        cache_read_input_tokens bigint NOT NULL,
        cache_write_input_tokens bigint NOT NULL,
        metadata jsonb,
        raw text,
        created_at timestamptz NOT NULL,
        PRIMARY KEY (interception_id, id)
    ) PARTITION BY RANGE (interception_id)
    """,
    """
    CREATE TABLE user_prompts (
        interception_id uuid NOT NULL,
        id uuid NOT NULL,
        prompt text NOT NULL,
        created_at timestamptz NOT NULL,
        PRIMARY KEY (interception_id, id)
    ) PARTITION BY RANGE (interception_id)
    """,
    """
    CREATE TABLE tool_usages (
        interception_id uuid NOT NULL,
        id uuid NOT NULL,
        provider_response_id text NOT NULL DEFAULT '',
        tool_call_id text,
        item_id text,
        tool text NOT NULL,
        input text NOT NULL DEFAULT '',
        injected boolean NOT NULL DEFAULT false,
        server_url text,
        invocation_error text,
        truncated boolean NOT NULL DEFAULT false,
        created_at timestamptz NOT NULL,
        PRIMARY KEY (interception_id, id)
    ) PARTITION BY RANGE (interception_id)
    """,
    "CREATE INDEX tool_usages_tool_call ON tool_usages (tool_call_id, interception_id) WHERE tool_call_id is not null",
    """
    CREATE TABLE model_thoughts (
        interception_id uuid NOT NULL,
        id uuid NOT NULL,
        content text NOT NULL,
        source text NOT NULL,
        created_at timestamptz NOT NULL,
        PRIMARY KEY (interception_id, id)
    ) PARTITION BY RANGE (interception_id)
    """,
    """
    CREATE TABLE interception_details (
        interception_id uuid NOT NULL,
        trace jsonb,
        output_text text,
        tool_results text[],
        PRIMARY KEY (interception_id)
    ) PARTITION BY RANGE (interception_id)
    """,
    """
    CREATE TABLE interception_sessions (
        session_id text NOT NULL,
        initiator_id uuid NOT NULL,
        started_at timestamptz NOT NULL,
        last_prompt_at timestamptz,
        last_active_at timestamptz NOT NULL,
        ended boolean NOT NULL,
        PRIMARY KEY (session_id, initiator_id)
    )
    """,
    "CREATE INDEX interception_sessions_initiator_newest ON interception_sessions (initiator_id, last_active_at, session_id)",
    "CREATE INDEX interception_sessions_newest ON interception_sessions (last_active_at, session_id)",
    """
    CREATE TABLE interception_facets (
        kind text NOT NULL,
        value text COLLATE "C" NOT NULL,
        initiator_id uuid NOT NULL,
        PRIMARY KEY (kind, value, initiator_id)
    )
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
    for table in _PARTITIONED:
        op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
