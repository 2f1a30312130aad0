"""RPC runs under a PostgreSQL role that may do what it needs, and nothing else."""

import asyncio
import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import uvloop
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from ostiary.control import database
from ostiary.control.store.rpc_role import RIGHTS, ROLE, RoleUnusableError, connect_as, ensure_role
from ostiary.control.store.tables import metadata
from ostiary.core.ids import new_id
from ostiary.core.records import Record
from ostiary.core.secret import Secret
from ostiary.core.settings import DemoProvider
from tests.support.control_server import OWNER_TOKEN, ControlServer, control_settings, serving
from tests.support.postgres import PostgresServer
from tests.support.records import encoded, end, start

PROVIDERS = (DemoProvider("demo-openai", "openai", "http://127.0.0.1:4010/v1", Secret("sk-demo-openai")),)

FORBIDDEN = [
    "SELECT * FROM audit_log",
    "INSERT INTO audit_log (id, actor, action, resource_type, resource_id) VALUES (gen_random_uuid(), '', '', '', '')",
    "UPDATE ai_providers SET base_url = 'http://evil.example'",
    "INSERT INTO ai_providers (id, type, name, base_url) VALUES (gen_random_uuid(), 'openai', 'x', 'http://x')",
    "DELETE FROM ai_providers",
    "UPDATE ai_provider_keys SET position = 7",
    "DELETE FROM ai_provider_keys",
    "INSERT INTO provider_revisions (actor, reason) VALUES ('', '')",
    "SELECT * FROM vault_keys",
    "UPDATE users SET role = 'owner'",
    "UPDATE tokens SET revoked_at = NULL",
    "INSERT INTO revocations (owner_id) VALUES (gen_random_uuid())",
    "UPDATE ai_gateway_keys SET key_sha256 = ''",
    "DELETE FROM interceptions",
    "SELECT prompt FROM user_prompts",
    "SELECT input FROM tool_usages",
    "SELECT content FROM model_thoughts",
    "SELECT * FROM interception_details",
    "SELECT * FROM token_usages",
    "SELECT payload FROM ingest_rejected",
    "UPDATE user_prompts SET prompt = ''",
    "TRUNCATE interceptions",
    "CREATE TABLE mine (id int)",
    f"ALTER ROLE {ROLE} SUPERUSER",
]


async def rpc_stores(server: ControlServer, *records: Record) -> None:
    payloads = [base64.b64encode(one).decode() for one in encoded(records)]
    body = {"journalId": new_id(), "firstSeq": 1, "records": payloads}
    answer = await server.rpc("Recorder/Record", body)
    assert answer.json() == {"ackedSeq": str(len(records))}, answer.text


def test_the_role_can_do_nothing_else(database_url: Secret) -> None:
    async def main() -> None:
        engine = await database.connect(database_url)
        await ensure_role(engine)
        narrow = await connect_as(engine, database_url)
        allowed = []
        for statement in FORBIDDEN:
            try:
                async with narrow.begin() as connection:
                    await connection.execute(text(statement))
                allowed.append(statement)
            except DBAPIError as exc:
                assert isinstance(exc.driver_exception, asyncpg.InsufficientPrivilegeError), statement
        assert allowed == []
        async with narrow.connect() as connection:
            for table in metadata.tables:
                readable = RIGHTS.get(table, ())[:1] == ("SELECT",)
                query = text("SELECT has_table_privilege(:table, 'SELECT')")
                assert await connection.scalar(query, {"table": table}) == readable, table
        await narrow.dispose()
        await engine.dispose()

    uvloop.run(main())


@pytest.mark.parametrize("ours", [True, False], ids=["own-schema", "somebody-elses"])
def test_a_schema_in_which_everybody_may_make_functions_is_closed_or_told(
    postgres_server: PostgresServer, ordinary_user: Secret, *, ours: bool
) -> None:
    """So it is in PostgreSQL 14."""
    user = urlsplit(ordinary_user.reveal()).username
    name = urlsplit(ordinary_user.reveal()).path.removeprefix("/")

    async def main() -> None:
        admin = await asyncpg.connect(postgres_server.asyncpg_dsn(name))
        await admin.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        await admin.execute(f"ALTER ROLE {user} CREATEROLE")
        if not ours:
            await admin.execute("ALTER SCHEMA public OWNER TO CURRENT_USER")
        engine = await database.connect(ordinary_user)
        with capture_logs() as logs:
            await ensure_role(engine, f"{user}_rpc")
        may = await admin.fetchval(f"SELECT has_schema_privilege('{user}_rpc', 'public', 'CREATE')")
        assert may is not ours
        assert await admin.fetchval(f"SELECT has_schema_privilege('{user}', 'public', 'CREATE')")
        told = [entry.get("hint", "") for entry in logs if "the schema" in entry["event"]]
        assert len(told) == 1
        if not ours:
            for statement in told[0].removeprefix("as its owner: ").split("; "):
                await admin.execute(statement)
            assert not await admin.fetchval(f"SELECT has_schema_privilege('{user}_rpc', 'public', 'CREATE')")
            assert await admin.fetchval(f"SELECT has_schema_privilege('{user}', 'public', 'CREATE')")
        await engine.dispose()
        await admin.execute(f"DROP OWNED BY {user}_rpc; DROP ROLE {user}_rpc")
        await admin.close()

    uvloop.run(main())


def test_every_call_of_a_gateway_goes_by_it(database_url: Secret, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(control_settings(database_url, tmp_path, demo_providers=PROVIDERS)) as server:
            engine = await database.connect(database_url)
            token = base64.b64encode(hashlib.sha256(OWNER_TOKEN.encode()).digest()).decode()
            calls = {
                "ai_providers": ("ProviderConfigurator/GetAIProviders", {}),
                "tokens": ("Authorizer/IsAuthorized", {"tokenSha256": token}),
                "journals": ("Recorder/Record", {"journalId": new_id()}),
                "replicas": ("Fleet/ReportStatus", {"replicaId": new_id(), "mode": "embedded"}),
            }
            for table, (method, body) in calls.items():
                assert (await server.rpc(method, body)).status_code == 200, method
                async with engine.begin() as connection:
                    await connection.execute(text(f"REVOKE ALL ON {table} FROM {ROLE}"))
                refused = await server.rpc(method, body)
                assert (refused.status_code, refused.json()["code"]) == (503, "unavailable"), method
                assert f"permission denied for table {table}" in refused.json()["message"]
            assert (await server.get("/api/v2/ai/providers")).status_code == 200
            await engine.dispose()
        # what was taken away is given again at the next start
        async with serving(control_settings(database_url, tmp_path, demo_providers=PROVIDERS)) as server:
            for method, body in calls.values():
                assert (await server.rpc(method, body)).status_code == 200, method

    uvloop.run(main())


def test_its_rights_are_enough_to_store_threads_in_any_order(database_url: Secret, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(control_settings(database_url, tmp_path)) as server:
            who = new_id()
            asks = start(initiator_id=who)
            answers = start(initiator_id=who, correlating_tool_call_id="toolu_1")
            await rpc_stores(server, answers, end(answers))
            await rpc_stores(server, asks, end(asks, calls=["toolu_1"]))  # found late: sessions are made anew
            sessions = (await server.get("/api/v2/ai-gateway/sessions")).json()
            assert sessions["count"] == 1
            open_ = start(initiator_id=who)
            journal = new_id()
            for seq, record in enumerate((open_, end(open_)), start=1):
                payload = base64.b64encode(encoded([record])[0]).decode()
                body = {"journalId": journal, "firstSeq": seq, "records": [payload]}
                assert (await server.rpc("Recorder/Record", body)).json() == {"ackedSeq": str(seq)}
            body = {"journalId": journal, "firstSeq": 3, "records": [base64.b64encode(b"nonsense").decode()]}
            assert [one["seq"] for one in (await server.rpc("Recorder/Record", body)).json()["rejected"]] == ["3"]

    uvloop.run(main())


def test_databases_of_one_server_share_it_and_may_start_at_once(new_database: Callable[[], Secret]) -> None:
    urls = [new_database() for _ in range(3)]

    async def main() -> None:
        engines = [await database.connect(url) for url in urls]
        await asyncio.gather(*(ensure_role(engine) for engine in engines for _ in range(2)))
        for engine, url in zip(engines, urls, strict=True):
            narrow = await connect_as(engine, url)
            await narrow.dispose()
            await engine.dispose()

    uvloop.run(main())


@pytest.fixture
def ordinary_user(postgres_server: PostgresServer, database_url: Secret) -> Secret:
    """The database's URL for a user who owns it and is otherwise nobody."""
    name = urlsplit(database_url.reveal()).path.removeprefix("/")
    user = f"user_{name[-12:]}"

    async def make() -> None:
        admin = await asyncpg.connect(postgres_server.asyncpg_dsn(name))
        await admin.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'secret'")
        await admin.execute(f"ALTER DATABASE {name} OWNER TO {user}")
        await admin.execute(f"ALTER SCHEMA public OWNER TO {user}")
        for row in await admin.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
            await admin.execute(f'ALTER TABLE "{row["tablename"]}" OWNER TO {user}')
        await admin.close()

    asyncio.run(make())
    parts = urlsplit(database_url.reveal())
    return Secret(urlunsplit(parts._replace(netloc=f"{user}:secret@{parts.netloc.rpartition('@')[2]}")))


def test_a_user_who_may_not_have_it_is_served_all_the_same_and_told(ordinary_user: Secret, tmp_path: Path) -> None:
    async def main() -> None:
        with capture_logs() as logs:
            async with serving(control_settings(ordinary_user, tmp_path, demo_providers=PROVIDERS)) as server:
                found = await server.rpc("ProviderConfigurator/GetAIProviders", {})
                assert [one["name"] for one in found.json()["providers"]] == ["demo-openai"]
                await rpc_stores(server, start())
        (told,) = [entry for entry in logs if entry["event"] == "running RPC without a role of its own"]
        assert ROLE in told["cause"]
        assert "docs/database.md" in told["hint"]

    uvloop.run(main())


def test_a_user_who_may_make_roles_makes_it_and_a_mighty_one_is_refused(
    postgres_server: PostgresServer, ordinary_user: Secret
) -> None:
    user = urlsplit(ordinary_user.reveal()).username
    role = f"{user}_rpc"

    async def main() -> None:
        admin = await asyncpg.connect(postgres_server.asyncpg_dsn("postgres"))
        await admin.execute(f"ALTER ROLE {user} CREATEROLE")
        engine = await database.connect(ordinary_user)
        for _ in range(2):
            await ensure_role(engine, role)
        narrow = await connect_as(engine, ordinary_user, role)
        async with narrow.connect() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM ai_providers")) == 0
            with pytest.raises(DBAPIError):
                await connection.execute(text("SELECT * FROM audit_log"))
        await narrow.dispose()
        await admin.execute(f"ALTER ROLE {role} CREATEDB")
        with pytest.raises(RoleUnusableError, match="may do more than RPC needs"):
            await ensure_role(engine, role)
        await admin.close()
        await engine.dispose()

    uvloop.run(main())
