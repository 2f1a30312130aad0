"""Every table of the database (design §12). Migrations create them; this is what queries are written against.

Rules
- Recorded data is partitioned by UUIDv7: `interceptions` by its id, the children by `interception_id`, weekly bounds
  and a default partition for skewed clocks. There are no foreign keys between recorded tables, and none from them to
  users: retention drops partitions, and a person's records outlive the person.
- Secrets are stored only as vault ciphertext (`bytea`, the vault key's id beside it) or as SHA-256.
- Time is `timestamptz` in UTC, money integer micro-dollars, tokens `bigint`.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData()


def _uuid(name: str, *, primary_key: bool = False, nullable: bool = False) -> Column[str]:
    return Column(name, Uuid(as_uuid=False), primary_key=primary_key, nullable=nullable)


def _time(name: str, *, nullable: bool = False, default_now: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=func.now() if default_now else None)


# --- people

users = Table(
    "users",
    metadata,
    _uuid("id", primary_key=True),
    Column("username", Text, nullable=False),
    Column("email", Text, nullable=False, server_default=""),
    Column("display_name", Text, nullable=False, server_default=""),
    Column("role", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="active"),
    Column("deleted", Boolean, nullable=False, server_default=text("false")),
    _time("created_at", default_now=True),
    _time("updated_at", default_now=True),
    CheckConstraint("role in ('owner', 'admin', 'auditor', 'member')", name="users_role"),
    CheckConstraint("status in ('active', 'suspended')", name="users_status"),
    Index("users_username", func.lower(text("username")), unique=True, postgresql_where=text("not deleted")),
)

tokens = Table(
    "tokens",
    metadata,
    _uuid("id", primary_key=True),
    Column("user_id", Uuid(as_uuid=False), ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("token_sha256", LargeBinary, nullable=False, unique=True),
    Column("kind", Text, nullable=False, server_default="user"),  # user | bootstrap
    _time("expires_at", nullable=True),
    _time("revoked_at", nullable=True),
    _time("created_at", default_now=True),
    Index("tokens_user", "user_id"),
)

revocations = Table(
    "revocations",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=True),
    _uuid("api_key_id", nullable=True),
    _uuid("owner_id", nullable=True),
    _time("at", default_now=True),
    CheckConstraint("num_nonnulls(api_key_id, owner_id) = 1", name="revocations_subject"),
)
"""Who must be asked for again; `control.identity.revocations` numbers them in the order of their commits."""

audit_log = Table(
    "audit_log",
    metadata,
    _uuid("id", primary_key=True),
    _time("at", default_now=True),
    _uuid("actor_id", nullable=True),
    Column("actor", Text, nullable=False),  # username, or `seed`, `bootstrap`
    Column("action", Text, nullable=False),  # create | update | delete | ...
    Column("resource_type", Text, nullable=False),
    Column("resource_id", Text, nullable=False),
    Column("resource_name", Text, nullable=False, server_default=""),
    Column("before", JSONB, nullable=True),
    Column("after", JSONB, nullable=True),
    Column("additional", JSONB, nullable=True),
    Column("source_ip", Text, nullable=False, server_default=""),
    Column("request_id", Text, nullable=False, server_default=""),
    Index("audit_log_at", "at"),
)

# --- gateways

ai_gateway_keys = Table(
    "ai_gateway_keys",
    metadata,
    _uuid("id", primary_key=True),
    Column("name", Text, nullable=False),
    Column("key_prefix", Text, nullable=False),
    Column("key_sha256", LargeBinary, nullable=False),
    _time("created_at", default_now=True),
    _time("last_heartbeat_at", nullable=True),
    UniqueConstraint("name", name="ai_gateway_keys_name"),
    UniqueConstraint("key_prefix", name="ai_gateway_keys_prefix"),
    UniqueConstraint("key_sha256", name="ai_gateway_keys_sha256"),
)

# --- providers

vault_keys = Table(
    "vault_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("check_value", LargeBinary, nullable=False),
    _time("created_at", default_now=True),
)

ai_providers = Table(
    "ai_providers",
    metadata,
    _uuid("id", primary_key=True),
    Column("type", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("display_name", Text, nullable=False, server_default=""),
    Column("icon", Text, nullable=False, server_default=""),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column("deleted", Boolean, nullable=False, server_default=text("false")),
    Column("base_url", Text, nullable=False),
    Column("settings", LargeBinary, nullable=True),  # vault ciphertext of JSON; NULL: no settings
    Column("settings_key_id", Text, ForeignKey("vault_keys.key_id"), nullable=True),
    _time("created_at", default_now=True),
    _time("updated_at", default_now=True),
    CheckConstraint("name ~ '^[a-z0-9]+(-[a-z0-9]+)*$'", name="ai_providers_name"),
    Index("ai_providers_live_name", "name", unique=True, postgresql_where=text("not deleted")),
)

ai_provider_keys = Table(
    "ai_provider_keys",
    metadata,
    _uuid("id", primary_key=True),
    Column("provider_id", Uuid(as_uuid=False), ForeignKey("ai_providers.id"), nullable=False),
    Column("position", Integer, nullable=False),  # the order of failover, of GET and of the RPC
    Column("api_key", LargeBinary, nullable=False),  # vault ciphertext
    Column("vault_key_id", Text, ForeignKey("vault_keys.key_id"), nullable=False),
    Column("masked", Text, nullable=False),
    _time("created_at", default_now=True),
    _time("updated_at", default_now=True),
    UniqueConstraint("provider_id", "position", name="ai_provider_keys_position", deferrable=True),
)

provider_revisions = Table(
    "provider_revisions",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=True),
    _time("at", default_now=True),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
)

# --- ingest

journals = Table(
    "journals",
    metadata,
    _uuid("journal_id", primary_key=True),
    Column("acked_seq", BigInteger, nullable=False),
    Column("stored", BigInteger, nullable=False, server_default="0"),
    Column("duplicate", BigInteger, nullable=False, server_default="0"),
    Column("rejected", BigInteger, nullable=False, server_default="0"),
    Column("gone", Boolean, nullable=False, server_default=text("false")),
    _time("first_seen", default_now=True),
    _time("last_seen", default_now=True),
)

ingest_rejected = Table(
    "ingest_rejected",
    metadata,
    _uuid("journal_id", primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    _time("at", default_now=True),
)

# --- gateways

replicas = Table(
    "replicas",
    metadata,
    _uuid("replica_id", primary_key=True),  # of a machine's data directory
    Column("hostname", Text, nullable=False),
    Column("mode", Text, nullable=False),  # embedded | standalone
    Column("build", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("status", JSONB, nullable=False),  # workers, keys, breakers, journals, provider_errors
    _time("first_seen", default_now=True),
    _time("last_seen", default_now=True),
    Index("replicas_last_seen", "last_seen"),
)

# --- what is recorded

interceptions = Table(
    "interceptions",
    metadata,
    _uuid("id", primary_key=True),
    _uuid("initiator_id"),
    _uuid("api_key_id"),
    Column("provider", Text, nullable=False),
    Column("provider_name", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("route_kind", Text, nullable=False, server_default="bridged"),
    Column("streaming", Boolean, nullable=False),
    _time("started_at"),
    _time("ended_at", nullable=True),
    Column("client", Text, nullable=True),
    Column("client_session_id", Text, nullable=True),
    _uuid("thread_parent_id", nullable=True),
    _uuid("thread_root_id", nullable=True),
    # coalesce(client_session_id, thread_root_id::text, id::text)
    Column("session_id", Text, nullable=False),
    Column("correlating_tool_call_id", Text, nullable=True),
    Column("credential_kind", Text, nullable=False),
    Column("credential_hint", Text, nullable=False, server_default=""),
    Column("revision", BigInteger, nullable=False, server_default="0"),
    Column("request_id", Text, nullable=False, server_default=""),
    Column("outcome", Text, nullable=True),
    Column("status_code", Integer, nullable=True),
    Column("error_type", Text, nullable=True),
    Column("error_message", Text, nullable=True),
    Column("provider_response_id", Text, nullable=True),
    Column("response_model", Text, nullable=True),
    Column("finish_reason", Text, nullable=True),
    Column("unparsed", Boolean, nullable=False, server_default=text("false")),
    Column("metadata", JSONB, nullable=True),  # request_user_agent and what else is odd
    _uuid("agent_firewall_session_id", nullable=True),
    Column("agent_firewall_sequence_number", Integer, nullable=True),
    _uuid("journal_id"),
    _time("stored_at", default_now=True),  # by the database's clock, whatever the gateway's said
    Index("interceptions_newest", "started_at", "id"),
    Index("interceptions_initiator_newest", "initiator_id", "started_at", "id"),
    Index("interceptions_session", "session_id"),
    Index("interceptions_thread_root", "thread_root_id", postgresql_where=text("thread_root_id is not null")),
    # a parent recorded after its child finds it here
    Index(
        "interceptions_orphans",
        "correlating_tool_call_id",
        postgresql_where=text("correlating_tool_call_id is not null and thread_parent_id is null"),
    ),
    # what a dead worker left open
    Index("interceptions_open", "journal_id", postgresql_where=text("ended_at is null")),
    postgresql_partition_by="RANGE (id)",
)


def _child(name: str, *columns: Column[object] | Index) -> Table:
    """A table of what belongs to an interception, in the same week's partition as its parent."""
    return Table(
        name,
        metadata,
        Column("interception_id", Uuid(as_uuid=False), primary_key=True),
        Column("id", Uuid(as_uuid=False), primary_key=True),
        *columns,
        postgresql_partition_by="RANGE (interception_id)",
    )


token_usages = _child(
    "token_usages",
    Column("provider_response_id", Text, nullable=False, server_default=""),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cache_read_input_tokens", BigInteger, nullable=False),
    Column("cache_write_input_tokens", BigInteger, nullable=False),
    Column("metadata", JSONB, nullable=True),
    Column("raw", Text, nullable=True),
    _time("created_at"),
)

user_prompts = _child(
    "user_prompts",
    Column("prompt", Text, nullable=False),
    _time("created_at"),
)

tool_usages = _child(
    "tool_usages",
    Column("provider_response_id", Text, nullable=False, server_default=""),
    Column("tool_call_id", Text, nullable=True),
    Column("item_id", Text, nullable=True),
    Column("tool", Text, nullable=False),
    Column("input", Text, nullable=False, server_default=""),
    Column("injected", Boolean, nullable=False, server_default=text("false")),
    Column("server_url", Text, nullable=True),
    Column("invocation_error", Text, nullable=True),
    Column("truncated", Boolean, nullable=False, server_default=text("false")),
    _time("created_at"),
    Index(
        "tool_usages_tool_call", "tool_call_id", "interception_id", postgresql_where=text("tool_call_id is not null")
    ),
)

model_thoughts = _child(
    "model_thoughts",
    Column("content", Text, nullable=False),
    Column("source", Text, nullable=False),
    _time("created_at"),
)

interception_details = Table(
    "interception_details",
    metadata,
    Column("interception_id", Uuid(as_uuid=False), primary_key=True),
    Column("trace", JSONB, nullable=True),
    Column("output_text", Text, nullable=True),
    Column("tool_results", ARRAY(Text), nullable=True),
    postgresql_partition_by="RANGE (interception_id)",
)
"""What is large or seldom read: decision trace, and with record_content=full the texts."""

# --- what lists are made from; ingest keeps them, all can be computed anew from the tables above

interception_sessions = Table(
    "interception_sessions",
    metadata,
    Column("session_id", Text, primary_key=True),
    _uuid("initiator_id", primary_key=True),
    _time("started_at"),
    _time("last_prompt_at", nullable=True),
    _time("last_active_at"),  # the last prompt, without one the start
    Column("ended", Boolean, nullable=False),  # at least one interception of it has ended
    Index("interception_sessions_newest", "last_active_at", "session_id"),
    Index("interception_sessions_initiator_newest", "initiator_id", "last_active_at", "session_id"),
)

interception_facets = Table(
    "interception_facets",
    metadata,
    Column("kind", Text, primary_key=True),  # model | client
    Column("value", Text(collation="C"), primary_key=True),
    _uuid("initiator_id", primary_key=True),
    _time("last_seen", default_now=True),  # to some hours
)
"""Which models and clients there are, for the lists that filters offer."""

# --- what the control plane does by itself

housekeeping = Table(
    "housekeeping",
    metadata,
    Column("task", Text, primary_key=True),  # retention
    _time("started_at"),
    _time("finished_at"),
    Column("complete", Boolean, nullable=False),
    Column("note", Text, nullable=False, server_default=""),
    Column("result", JSONB, nullable=False),
)
"""How each task went the last time, whichever control plane did it."""

PARTITIONED = ("interceptions", "token_usages", "user_prompts", "tool_usages", "model_thoughts", "interception_details")
