"""The SQL of ingest. Bulk statements take one array a column; ids that exist are left alone.

Rules
- Rows that two transactions may both write (sessions, facets) are written in the order of their keys, in one statement:
  so no two wait for each other in a circle.
"""

from typing import Final

Columns = tuple[tuple[str, str], ...]

INTERCEPTION_COLUMNS: Final[Columns] = (
    ("id", "uuid"),
    ("initiator_id", "uuid"),
    ("api_key_id", "uuid"),
    ("provider", "text"),
    ("provider_name", "text"),
    ("model", "text"),
    ("route", "text"),
    ("route_kind", "text"),
    ("streaming", "boolean"),
    ("started_at", "timestamptz"),
    ("client", "text"),
    ("client_session_id", "text"),
    ("correlating_tool_call_id", "text"),
    ("credential_kind", "text"),
    ("revision", "bigint"),
    ("request_id", "text"),
    ("metadata", "jsonb"),
    ("agent_firewall_session_id", "uuid"),
    ("agent_firewall_sequence_number", "integer"),
    ("journal_id", "uuid"),
    ("thread_parent_id", "uuid"),
    ("thread_root_id", "uuid"),
    ("session_id", "text"),
    ("credential_hint", "text"),
    ("ended_at", "timestamptz"),
    ("outcome", "text"),
    ("status_code", "integer"),
    ("error_type", "text"),
    ("error_message", "text"),
    ("provider_response_id", "text"),
    ("response_model", "text"),
    ("finish_reason", "text"),
    ("unparsed", "boolean"),
)

END_COLUMNS: Final[Columns] = (("id", "uuid"), ("credential_hint", "text"), *INTERCEPTION_COLUMNS[-9:])

TOKEN_USAGE_COLUMNS: Final[Columns] = (
    ("interception_id", "uuid"),
    ("id", "uuid"),
    ("provider_response_id", "text"),
    ("input_tokens", "bigint"),
    ("output_tokens", "bigint"),
    ("cache_read_input_tokens", "bigint"),
    ("cache_write_input_tokens", "bigint"),
    ("metadata", "jsonb"),
    ("raw", "text"),
    ("created_at", "timestamptz"),
)

USER_PROMPT_COLUMNS: Final[Columns] = (
    ("interception_id", "uuid"),
    ("id", "uuid"),
    ("prompt", "text"),
    ("created_at", "timestamptz"),
)

TOOL_USAGE_COLUMNS: Final[Columns] = (
    ("interception_id", "uuid"),
    ("id", "uuid"),
    ("provider_response_id", "text"),
    ("tool_call_id", "text"),
    ("item_id", "text"),
    ("tool", "text"),
    ("input", "text"),
    ("injected", "boolean"),
    ("server_url", "text"),
    ("invocation_error", "text"),
    ("truncated", "boolean"),
    ("created_at", "timestamptz"),
)

MODEL_THOUGHT_COLUMNS: Final[Columns] = (
    ("interception_id", "uuid"),
    ("id", "uuid"),
    ("content", "text"),
    ("source", "text"),
    ("created_at", "timestamptz"),
)


def _unnest(columns: Columns, alias: str) -> str:
    # JSON travels as text: asyncpg's codec for jsonb is SQLAlchemy's
    arrays = ", ".join(f"${n}::{'text' if kind == 'jsonb' else kind}[]" for n, (_, kind) in enumerate(columns, start=1))
    return f"unnest({arrays}) AS {alias}({', '.join(name for name, _ in columns)})"


def _insert(table: str, columns: Columns) -> str:
    names = ", ".join(name for name, _ in columns)
    values = ", ".join(f"u.{name}::jsonb" if kind == "jsonb" else f"u.{name}" for name, kind in columns)
    return f"INSERT INTO {table} ({names}) SELECT {values} FROM {_unnest(columns, 'u')} ON CONFLICT DO NOTHING"  # noqa: S608  names of ours


INSERT_INTERCEPTIONS: Final = _insert("interceptions", INTERCEPTION_COLUMNS) + " RETURNING id::text"
INSERT_TOKEN_USAGES: Final = _insert("token_usages", TOKEN_USAGE_COLUMNS)
INSERT_USER_PROMPTS: Final = _insert("user_prompts", USER_PROMPT_COLUMNS)
INSERT_TOOL_USAGES: Final = _insert("tool_usages", TOOL_USAGE_COLUMNS)
INSERT_MODEL_THOUGHTS: Final = _insert("model_thoughts", MODEL_THOUGHT_COLUMNS)

INSERT_DETAILS: Final = """
INSERT INTO interception_details (interception_id, trace, output_text, tool_results)
SELECT u.id, u.trace::jsonb, u.output_text,
       CASE WHEN u.results IS NOT NULL THEN ARRAY(SELECT jsonb_array_elements_text(u.results::jsonb)) END
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS u(id, trace, output_text, results)
ON CONFLICT DO NOTHING
"""

CLOSE_INTERCEPTIONS: Final = f"""
UPDATE interceptions AS i
SET {", ".join(f"{name} = u.{name}" for name, _ in END_COLUMNS[2:])},
    credential_hint = CASE WHEN i.credential_kind = 'centralized' AND u.credential_hint <> ''
                           THEN u.credential_hint ELSE i.credential_hint END
FROM {_unnest(END_COLUMNS, "u")}
WHERE i.id = u.id AND i.ended_at IS NULL
RETURNING i.id::text
"""  # noqa: S608  names of ours

FIND_INTERCEPTIONS: Final = """
SELECT id::text, initiator_id::text, thread_root_id::text, session_id, started_at, ended_at IS NOT NULL AS ended
FROM interceptions WHERE id = ANY($1::uuid[])
"""

INTERRUPT_OPEN: Final = """
UPDATE interceptions SET ended_at = greatest(started_at, $2), outcome = 'interrupted'
WHERE journal_id = $1 AND ended_at IS NULL
RETURNING id::text, initiator_id::text, session_id, started_at, ended_at
"""

# --- the journal's own row

LOCK_JOURNAL: Final = "SELECT acked_seq, gone FROM journals WHERE journal_id = $1 FOR UPDATE"

OPEN_JOURNAL: Final = """
INSERT INTO journals (journal_id, acked_seq) VALUES ($1, 0)
ON CONFLICT (journal_id) DO UPDATE SET last_seen = now()
RETURNING acked_seq, gone
"""

ADVANCE_JOURNAL: Final = """
UPDATE journals
SET acked_seq = $2, stored = stored + $3, duplicate = duplicate + $4, rejected = rejected + $5,
    gone = gone OR $6, last_seen = now()
WHERE journal_id = $1
"""

ACKED_SEQ: Final = "SELECT acked_seq FROM journals WHERE journal_id = $1"

KEEP_REJECTED: Final = """
INSERT INTO ingest_rejected (journal_id, seq, reason, payload)
SELECT $1, * FROM unnest($2::bigint[], $3::text[], $4::bytea[])
ON CONFLICT DO NOTHING
"""

# --- sessions and facets

TOUCH_SESSIONS: Final = """
INSERT INTO interception_sessions AS s (session_id, initiator_id, started_at, last_prompt_at, last_active_at, ended)
SELECT session_id, initiator_id, started_at, prompted_at, coalesce(prompted_at, started_at), ended
FROM unnest($1::text[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::boolean[])
     AS u(session_id, initiator_id, started_at, prompted_at, ended)
ORDER BY session_id, initiator_id
ON CONFLICT (session_id, initiator_id) DO UPDATE SET
    started_at = least(s.started_at, excluded.started_at),
    last_prompt_at = greatest(s.last_prompt_at, excluded.last_prompt_at),
    last_active_at = coalesce(greatest(s.last_prompt_at, excluded.last_prompt_at),
                              least(s.started_at, excluded.started_at)),
    ended = s.ended OR excluded.ended
"""

ADD_FACETS: Final = """
INSERT INTO interception_facets AS f (kind, value, initiator_id)
SELECT * FROM unnest($1::text[], $2::text[], $3::uuid[]) AS u(kind, value, initiator_id)
ORDER BY kind, value, initiator_id
ON CONFLICT (kind, value, initiator_id) DO UPDATE SET last_seen = now() WHERE f.last_seen < now() - interval '1 hour'
"""

# --- lineage

FIND_PARENTS: Final = """
SELECT q.child::text, f.id::text, f.thread_root_id::text
FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS q(child, initiator, call)
CROSS JOIN LATERAL (
    SELECT p.id, p.thread_root_id
    FROM (SELECT t.interception_id FROM tool_usages AS t
          WHERE t.tool_call_id = q.call AND t.interception_id < q.child
          ORDER BY t.interception_id DESC LIMIT 64) AS t
    JOIN interceptions AS p ON p.id = t.interception_id AND p.initiator_id = q.initiator
    ORDER BY p.id DESC LIMIT 1
) AS f
"""
"""Callers of one id are looked at newest first, 64 of them: some providers number their calls `call_0`, `call_1`."""

FIND_LATE_PARENTS: Final = """
SELECT c.id::text AS child, f.id::text AS parent, f.thread_root_id::text AS root
FROM (SELECT id, initiator_id, correlating_tool_call_id FROM interceptions
      WHERE correlating_tool_call_id = ANY($1::text[]) AND thread_parent_id IS NULL AND id >= $2
      ORDER BY id LIMIT 2000) AS c
CROSS JOIN LATERAL (
    SELECT p.id, p.thread_root_id
    FROM (SELECT t.interception_id FROM tool_usages AS t
          WHERE t.tool_call_id = c.correlating_tool_call_id AND t.interception_id < c.id
          ORDER BY t.interception_id DESC LIMIT 64) AS t
    JOIN interceptions AS p ON p.id = t.interception_id AND p.initiator_id = c.initiator_id
    ORDER BY p.id DESC LIMIT 1
) AS f
"""

FIND_ORPHANS: Final = """
SELECT correlating_tool_call_id, id::text FROM interceptions
WHERE correlating_tool_call_id IS NOT NULL AND thread_parent_id IS NULL AND id >= $1
ORDER BY id LIMIT 2000
"""

LINK_CHILDREN: Final = """
UPDATE interceptions AS i
SET thread_parent_id = u.parent, thread_root_id = u.root, session_id = coalesce(i.client_session_id, u.root::text)
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS u(child, parent, root)
WHERE i.id = u.child AND i.thread_parent_id IS NULL
"""

MOVE_DESCENDANTS: Final = """
UPDATE interceptions AS i
SET thread_root_id = u.root, session_id = coalesce(i.client_session_id, u.root::text)
FROM unnest($1::uuid[], $2::uuid[]) AS u(child, root)
WHERE i.thread_root_id = u.child
"""

REBUILD_SESSIONS: Final = """
INSERT INTO interception_sessions AS s (session_id, initiator_id, started_at, last_prompt_at, last_active_at, ended)
SELECT i.session_id, i.initiator_id, min(i.started_at), max(p.created_at),
       coalesce(max(p.created_at), min(i.started_at)), bool_or(i.ended_at IS NOT NULL)
FROM interceptions AS i LEFT JOIN user_prompts AS p ON p.interception_id = i.id
WHERE i.session_id = ANY($1::text[])
GROUP BY i.session_id, i.initiator_id
ORDER BY i.session_id, i.initiator_id
ON CONFLICT (session_id, initiator_id) DO UPDATE SET
    started_at = least(s.started_at, excluded.started_at),
    last_prompt_at = greatest(s.last_prompt_at, excluded.last_prompt_at),
    last_active_at = coalesce(greatest(s.last_prompt_at, excluded.last_prompt_at),
                              least(s.started_at, excluded.started_at)),
    ended = s.ended OR excluded.ended
"""

DROP_EMPTY_SESSIONS: Final = """
DELETE FROM interception_sessions AS s
WHERE s.session_id = ANY($1::text[])
  AND NOT EXISTS (SELECT FROM interceptions AS i WHERE i.session_id = s.session_id AND i.initiator_id = s.initiator_id)
"""
