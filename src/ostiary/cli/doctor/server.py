"""Whether the server answers, whom it takes us for, and what its control plane says of itself and its database."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ostiary import __version__
from ostiary.cli.client import Client, is_local
from ostiary.cli.failure import Failure, Refused
from ostiary.cli.output import one_line, parse_time

from .findings import Finding, Group, number, size

SKEW_WARNING: Final = timedelta(seconds=2)
SKEW_WRONG: Final = timedelta(seconds=60)
LEAST_FREE: Final = 256 * 1024**2
"""Bytes below which a disk is as good as full."""
FEW_FILES: Final = 1024
_MOST_CONNECTIONS: Final = 0.9
_WORKER_SECONDS: Final = 5.0
_API_SECONDS: Final = 15.0
"""More than a control plane waits for its database."""

_server, _clocks, _database, _records = Group("server"), Group("clocks"), Group("database"), Group("records")


class Reached:
    """A server that answers, and who we are there. `findings` says what came of trying; `usable`: it can be asked more."""

    def __init__(self, client: Client) -> None:
        self.findings: list[Finding] = []
        self.usable = False
        place = client.place
        try:
            client.ask("GET", "/healthz", within=_WORKER_SECONDS)
            ready = client.send("GET", "/readyz", within=_WORKER_SECONDS).status_code == 200
        except Failure as failure:
            self.findings.append(_server.wrong(*_cured(failure.message)))
            return
        self.findings += _transport(place.url)
        if not ready:
            cure = "see its log: a worker has no providers yet, or the control plane has been away for longer than auth_grace"
            self.findings.append(_server.wrong(f"{place.url} serves and is not ready", cure))
        try:
            me = client.ask("GET", "/api/v2/users/me", within=_API_SECONDS)
        except Failure as failure:
            self.findings.append(_unanswered(failure))
            return
        if me["role"] not in ("owner", "admin"):
            raise Failure(f"doctor takes the token of an owner or an admin; {me['username']} is {me['role']}")
        self.findings.append(_server.ok(f"{place.url}, as {one_line(me['username'])} ({me['role']})"))
        self.usable = True


def _cured(message: str) -> tuple[str, str]:
    """The client's own words: what is wrong, and behind the semicolon what to do."""
    text, _, cure = message.partition("; ")
    return text, cure


def _unanswered(failure: Failure) -> Finding:
    if not isinstance(failure, Refused):
        return _server.wrong(*_cured(failure.message))
    if failure.code == 503:
        cure = "start or mend PostgreSQL; the log of the server says what it tries. Calls of known tokens are served meanwhile"
        return _database.wrong(failure.message, cure)
    if failure.code == 401:
        raise failure
    return _server.wrong(failure.message, "see the log of the server")


def _transport(url: str) -> Iterator[Finding]:
    if url.startswith("http:") and not is_local(url):
        cure = "set tls_cert_file and tls_key_file, or put a proxy that speaks TLS in front"
        yield _server.warning(f"{url} is not encrypted: tokens and prompts can be read on the way", cure)


def diagnosis(client: Client) -> Iterator[Finding]:
    """What the control plane knows of itself."""
    sent = datetime.now(UTC)
    told = client.get("/api/v2/diagnosis")
    received = datetime.now(UTC)
    yield from versions(told["server"])
    yield from server_room(told["server"])
    yield from server_clock(told["server"], sent, received)
    yield from database_clock(told["database"])
    yield from database(told["database"], told["server"])
    yield from partitions(told["partitions"])
    yield from journals(told["journals"])


def versions(server: dict[str, Any], ours: str = __version__) -> Iterator[Finding]:
    if server["build"] == ours:
        yield _server.ok(f"version {ours}")
    else:
        cure = "use the command of the server's version: another one may not understand its answers"
        yield _server.warning(f"the server is {one_line(server['build'])}, this command is {ours}", cure)


def server_room(server: dict[str, Any]) -> Iterator[Finding]:
    limit = server["open_files_limit"]
    if limit is not None and limit < FEW_FILES:
        cure = "raise the hard limit: LimitNOFILE=65536 in a systemd unit, --ulimit nofile=65536 of a container"
        yield _server.wrong(f"the control plane may open {number(limit, 'file')} only", cure)
    free = server["disk_free_bytes"]
    if free is not None and free < LEAST_FREE:
        cure = "make room there: without it requests are refused, since they cannot be recorded"
        yield _server.wrong(f"{size(free)} free where {one_line(server['data_dir'])} is", cure)
    elif free is not None:
        yield _server.ok(f"{size(free)} free where {one_line(server['data_dir'])} is")


def server_clock(server: dict[str, Any], sent: datetime, received: datetime) -> Iterator[Finding]:
    """The control plane's clock against this machine's; it was read between `sent` and `received`."""
    told = _time(server["now"])
    if told < sent:
        yield from _skew("the control plane's clock is", "behind this machine's", sent - told)
    elif told > received:
        yield from _skew("the control plane's clock is", "ahead of this machine's", told - received)
    else:
        yield _clocks.ok(f"control plane and this machine agree to {_seconds(received - sent)}")


def database_clock(database: dict[str, Any]) -> Iterator[Finding]:
    """The database's clock against the control plane's."""
    ahead = timedelta(milliseconds=database["ahead_ms"])
    error = timedelta(milliseconds=database["clock_error_ms"])
    where = "ahead of the control plane's" if ahead > timedelta(0) else "behind the control plane's"
    if abs(ahead) <= error:
        yield _clocks.ok(f"database and control plane agree to {_seconds(max(error, abs(ahead)))}")
    else:
        yield from _skew("the database's clock is", where, abs(ahead))


def gateway_clocks(replicas: list[dict[str, Any]]) -> Iterator[Finding]:
    """The clocks of live gateways elsewhere against the control plane's, as they found out themselves."""
    for replica in replicas:
        ahead_ms = replica.get("clock_ahead_ms")  # gateways of older versions do not say
        if replica["state"] != "live" or replica["mode"] == "embedded" or ahead_ms is None:
            continue
        ahead = timedelta(milliseconds=ahead_ms)
        where = "ahead of the control plane's" if ahead > timedelta(0) else "behind the control plane's"
        yield from _skew(f"the clock of {one_line(replica['hostname'])} is", where, abs(ahead))


def _skew(whose: str, where: str, by: timedelta) -> Iterator[Finding]:
    text = f"{whose} {_seconds(by)} {where}"
    cure = "let both machines follow NTP: ids and weeks of records, ends of tokens and waits of keys follow the clock"
    if by >= SKEW_WRONG:
        yield _clocks.wrong(text, cure)
    elif by >= SKEW_WARNING:
        yield _clocks.warning(text, cure)
    else:
        yield _clocks.ok(text)


def database(told: dict[str, Any], server: dict[str, Any]) -> Iterator[Finding]:
    kind = "embedded PostgreSQL" if server["embedded_database"] else "PostgreSQL"
    yield _database.ok(f"{kind} {one_line(told['version'])}, {size(told['size_bytes'])}")
    if told["migration_state"] == "older":
        cure = "restart the control plane: it migrates at its start"
        text = f"migration {told['migration']} is missing what comes up to {told['newest_migration']}"
        yield _database.wrong(text, cure)
    elif told["migration_state"] == "newer":
        cure = "finish the upgrade: restart this control plane with the newer version, or restore a backup to go back"
        text = f"migration {one_line(told['migration'])} is newer than this control plane knows ({told['newest_migration']})"
        yield _database.warning(text, cure)
    else:
        yield _database.ok(f"migration {told['migration']}, the newest")
    if told["connections"] >= _MOST_CONNECTIONS * told["max_connections"]:
        cure = "raise max_connections of PostgreSQL, or find out who holds them: SELECT * FROM pg_stat_activity"
        yield _database.warning(f"{told['connections']} of {told['max_connections']} connections are in use", cure)
    if not server["listening"]:
        cure = (
            "set OSTIARY_DATABASE_LISTEN_URL to the database itself when a pooler stands between; see the server's log"
        )
        yield _database.warning("changes are not told by the database (LISTEN), they are found 10 s late", cure)
    if not told["rpc_role"]:
        cure = "docs/database.md says what to grant to the database's user"
        yield _database.warning(
            "gateways are served with all rights on the database, not under a role of their own", cure
        )


def partitions(told: dict[str, Any]) -> Iterator[Finding]:
    missing, late = told["missing"], told["default_rows"]
    if missing:
        cure = "the control plane tries every 5 minutes; its log says why it fails (`making partitions later`)"
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        yield _database.wrong(f"{number(len(missing), 'partition')} of these weeks are missing: {some}", cure)
    for one in late:
        many = "1,000 rows or more" if one["rows"] >= 1000 else number(one["rows"], "row")
        cure = "a gateway's clock is or was wrong, or weeks were made late; nothing is lost, they move when their week is made"
        yield _database.warning(f"{many} of {one['table']} stand in no week's partition", cure)
    if not missing and not late:
        yield _database.ok("partitions are made ahead, none holds strays")


def journals(told: dict[str, Any]) -> Iterator[Finding]:
    for one in told["unbalanced"]:
        sums = f"{one['stored']} + {one['duplicate']} + {one['rejected']}"
        text = f"journal {one['journal_id']}: {one['acked_seq']} acknowledged, {sums} stored, duplicate and rejected"
        cure = "records are lost or counted twice: please report it with the server's log and this line"
        yield _records.wrong(text, cure)
    if not told["unbalanced_count"]:
        text = f"{number(told['count'], 'journal')} reconcile: acknowledged = stored + duplicate + rejected"
        yield _records.ok(text)
    lately = sum(one["count"] for one in told["rejected_lately"])
    for one in told["rejected_lately"]:
        cure = f"GET /api/v2/ai-gateway/journals/{one['journal_id']} says which; they are kept in the table ingest_rejected"
        text = f"{number(one['count'], 'record')} of the last day could not be stored: {one_line(one['reason'])}"
        yield _records.wrong(text, cure)
    if earlier := told["rejected"] - lately:
        cure = "the table ingest_rejected has them, with the reason; delete there what has been dealt with"
        yield _records.warning(f"{number(earlier, 'record')} could not be stored earlier on", cure)


def vault(client: Client) -> Iterator[Finding]:
    """The keys that encrypt at rest."""
    yield from vault_keys(client.get("/api/v2/vault"))


def vault_keys(keys: list[dict[str, Any]]) -> Iterator[Finding]:
    """Whether everything encrypted can be read, and stands under the current key."""
    for key in keys:
        held = number(key["values"], "stored secret")
        if key["values"] and not key["available"]:
            cure = "put it back into OSTIARY_ENCRYPTION_KEYS of every control plane, or enter those secrets again"
            yield _database.wrong(f"vault key {one_line(key['key_id'])} is missing, and encrypts {held}", cure)
        elif key["values"] and not key["sealing"]:
            yield _database.warning(
                f"vault key {one_line(key['key_id'])} is not the first, and encrypts {held}", "ostiary vault rotate"
            )
    if all(key["sealing"] or not key["values"] for key in keys):
        yield _database.ok("every stored secret is under the current vault key")


def _time(text: str) -> datetime:
    moment = parse_time(text)
    if moment is None:
        raise ValueError(f"no time: {text}")
    return moment


def _seconds(length: timedelta) -> str:
    seconds = length.total_seconds()
    if seconds >= 120:
        return f"{seconds / 60:,.0f} minutes"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
