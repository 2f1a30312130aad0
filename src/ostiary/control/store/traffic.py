"""What the last minute or so brought, summed over all gateways from their records.

Rules
- A look costs about the same however much there is: the newest `MOST` records that began lately. When they reach less
  far back than the window, what is counted is only of the time that they cover, which is said.
- A call counts as started by the clock of its gateway, and its end and its tokens when it has ended. Calls that began
  more than `LOOKBACK` before the window are counted while they run, and not when they end.
- Records come once their journal is shipped, within a second while all is well.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import Field
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.core.ids import first_id_at

MOST: Final = 20_000
LOOKBACK: Final = 600
"""Seconds."""
OPEN_WITHIN: Final = 6 * 3600
"""Seconds since the start after which a call without an end is taken for lost with its gateway."""
MAX_ROWS: Final = 100
MAX_ERRORS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficCounts:
    """Numbers of `covered_seconds`, but `in_flight`, which is of now."""

    started: int = 0
    ended: int = 0
    failed: Annotated[int, Field(description="Ended without a good answer; clients that left are not counted")] = 0
    client_closed: int = 0
    in_flight: Annotated[int, Field(description="Begun within the last hours and not ended")] = 0
    input_tokens: Annotated[int, Field(description="This and the next three: of calls that ended")] = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    p50_seconds: Annotated[float | None, Field(description="From start to end; null when none ended")] = None
    p95_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTraffic(TrafficCounts):
    provider_name: str
    model: str


@dataclass(frozen=True, slots=True)
class TrafficError:
    provider_name: str
    model: str
    outcome: str
    status_code: int | None
    error_type: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Traffic:
    at: datetime
    window_seconds: int
    covered_seconds: Annotated[
        float, Field(description="What the counts are of: the window, or less under a load that is too much to sum up")
    ]
    total: TrafficCounts
    models: Annotated[list[ModelTraffic], Field(description=f"The busiest {MAX_ROWS}")]
    errors: Annotated[list[TrafficError], Field(description=f"The {MAX_ERRORS} most frequent")]


_SUMS: Final = text("""
WITH recent AS MATERIALIZED (
    SELECT id, provider_name, model, started_at, ended_at, outcome, status_code
    FROM interceptions
    WHERE started_at > now() - make_interval(secs => CAST(:window AS float8) + CAST(:lookback AS float8))
      AND id >= CAST(:since AS uuid)
    ORDER BY started_at DESC, id DESC LIMIT :most
), span AS (
    SELECT greatest(now() - make_interval(secs => CAST(:window AS float8)),
                    CASE WHEN count(*) = :most THEN min(started_at) END) AS since
    FROM recent
), spent AS (
    SELECT r.id, sum(t.input_tokens) AS input_tokens, sum(t.output_tokens) AS output_tokens,
           sum(t.cache_read_input_tokens) AS cache_read_input_tokens,
           sum(t.cache_write_input_tokens) AS cache_write_input_tokens
    FROM span CROSS JOIN recent AS r JOIN token_usages AS t ON t.interception_id = r.id
    WHERE r.ended_at > span.since
    GROUP BY r.id
)
SELECT grouping(r.model) = 1 AS total, r.provider_name, r.model,
       extract(epoch FROM now() - min(span.since))::float8 AS covered_seconds,
       count(*) FILTER (WHERE r.started_at > span.since) AS started,
       count(*) FILTER (WHERE r.ended_at > span.since) AS ended,
       count(*) FILTER (WHERE r.ended_at > span.since AND r.outcome <> 'client_closed'
                        AND (r.outcome <> 'completed' OR r.status_code >= 400)) AS failed,
       count(*) FILTER (WHERE r.ended_at > span.since AND r.outcome = 'client_closed') AS client_closed,
       coalesce(sum(spent.input_tokens), 0)::bigint AS input_tokens,
       coalesce(sum(spent.output_tokens), 0)::bigint AS output_tokens,
       coalesce(sum(spent.cache_read_input_tokens), 0)::bigint AS cache_read_input_tokens,
       coalesce(sum(spent.cache_write_input_tokens), 0)::bigint AS cache_write_input_tokens,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM r.ended_at - r.started_at)::float8)
           FILTER (WHERE r.ended_at > span.since) AS p50_seconds,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM r.ended_at - r.started_at)::float8)
           FILTER (WHERE r.ended_at > span.since) AS p95_seconds
FROM span CROSS JOIN recent AS r LEFT JOIN spent ON spent.id = r.id
WHERE r.started_at > span.since OR r.ended_at > span.since
GROUP BY GROUPING SETS ((r.provider_name, r.model), ())
ORDER BY 1 DESC, started DESC, ended DESC, provider_name, model LIMIT :rows
""")

_ERRORS: Final = text("""
WITH recent AS (
    SELECT provider_name, model, outcome, status_code, error_type, ended_at
    FROM interceptions
    WHERE started_at > now() - make_interval(secs => CAST(:window AS float8) + CAST(:lookback AS float8))
      AND id >= CAST(:since AS uuid)
    ORDER BY started_at DESC, id DESC LIMIT :most
)
SELECT provider_name, model, outcome, status_code, error_type, count(*) AS count
FROM recent
WHERE ended_at > now() - make_interval(secs => CAST(:window AS float8)) AND outcome <> 'client_closed'
  AND (outcome <> 'completed' OR status_code >= 400)
GROUP BY 1, 2, 3, 4, 5 ORDER BY count DESC, 1, 2, 3, 4, 5 LIMIT :rows
""")

_OPEN: Final = text("""
WITH open AS MATERIALIZED (
    SELECT provider_name, model, started_at FROM interceptions
    WHERE ended_at IS NULL AND id >= CAST(:since AS uuid) LIMIT :most
)
SELECT grouping(model) = 1 AS total, provider_name, model, count(*) AS in_flight FROM open
WHERE started_at > now() - make_interval(secs => CAST(:within AS float8))
GROUP BY GROUPING SETS ((provider_name, model), ())
ORDER BY 1 DESC, in_flight DESC, provider_name, model LIMIT :rows
""")


async def read_traffic(connection: AsyncConnection, window: int) -> Traffic:
    """Of the last `window` seconds."""
    at: datetime = (await connection.execute(text("SELECT now()"))).scalar_one()
    # ids tell the time too: only partitions of these days are looked at
    since = first_id_at(int((at.timestamp() - 86400) * 1000))
    bounds = {"window": float(window), "lookback": float(LOOKBACK), "since": since, "most": MOST}
    sums = (await connection.execute(_SUMS, bounds | {"rows": MAX_ROWS + 1})).mappings().all()
    open_bounds = {"since": since, "most": MOST, "within": float(OPEN_WITHIN), "rows": MAX_ROWS + 1}
    open_ = (await connection.execute(_OPEN, open_bounds)).mappings().all()
    errors = (await connection.execute(_ERRORS, bounds | {"rows": MAX_ERRORS})).mappings().all()
    found: dict[tuple[str, str] | None, dict[str, Any]] = {}  # Any: one count each
    covered = float(window)
    for row in sums:
        counts = {name: row[name] for name in row if name not in ("total", "provider_name", "model", "covered_seconds")}
        if row["total"]:
            covered = min(covered, row["covered_seconds"] or covered)
        found[None if row["total"] else (row["provider_name"], row["model"])] = counts
    for row in open_:
        of = None if row["total"] else (row["provider_name"], row["model"])
        found.setdefault(of, {})["in_flight"] = row["in_flight"]
    total = found.pop(None, {})
    models = [ModelTraffic(provider_name=of[0], model=of[1], **counts) for of, counts in found.items() if of]
    return Traffic(
        at=at,
        window_seconds=window,
        covered_seconds=covered,
        total=TrafficCounts(**total),
        models=models[:MAX_ROWS],
        errors=[TrafficError(**row) for row in errors],
    )
