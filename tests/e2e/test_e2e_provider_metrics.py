"""What a running server's metrics page says of its providers, and that a failed reload takes nothing away."""

import asyncio
from typing import Any

import asyncpg

from tests.support.fake_provider import FakeProvider
from tests.support.server import Server, StartServer, eventually

ATTEMPT = "ostiary_providers_last_reload_timestamp_seconds"
SUCCESS = "ostiary_providers_last_reload_success_timestamp_seconds"
BREAK = "ALTER TABLE ai_providers RENAME TO ai_providers_away"
MEND = "ALTER TABLE ai_providers_away RENAME TO ai_providers"
CHANGED = """
WITH made AS (INSERT INTO provider_revisions (actor, reason) VALUES ('test', 'by hand') RETURNING revision)
SELECT pg_notify('ai_providers_changed', revision::text) FROM made
"""


def by_hand(server: Server, *statements: str) -> None:
    """As somebody with the database's password."""

    async def run() -> None:
        socket = (server.data_dir / "pg/data/postmaster.pid").read_text().splitlines()[4]
        password = (server.data_dir / "postgres-password").read_text().strip()
        connection = await asyncpg.connect(host=socket, user="ostiary", password=password, database="ostiary")
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    asyncio.run(run())


def test_states_of_providers_and_the_two_times_of_reloading(start_server: StartServer, own_fake: FakeProvider) -> None:
    server = start_server(own_fake, "--workers", "1")
    wanted: dict[str, Any] = {"type": "openai", "base_url": f"{own_fake.url}/v1", "api_keys": ["sk-good-0123456789"]}
    for name, fields in (("off", {"enabled": False}), ("odd", {})):
        made = server.owner.post("/api/v2/ai/providers", json={**wanted, "name": name, **fields})
        assert made.status_code == 201, made.text
    token = server.new_token("ann")
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "hi"}]}

    def status(name: str) -> list[str]:
        states = ("enabled", "disabled", "error")
        return [one for one in states if server.metric("ostiary_provider_info", provider_name=name, status=one) == 1]

    def call(name: str) -> int:
        with server.client(token) as client:
            return client.post(f"/api/v2/ai-gateway/{name}/v1/chat/completions", json=body).status_code

    for name, state, code in (("openai", "enabled", 200), ("off", "disabled", 503), ("odd", "enabled", 200)):
        eventually(lambda name=name, state=state: status(name) == [state], what=name)  # type: ignore[misc]
        assert call(name) == code

    by_hand(server, "UPDATE ai_providers SET type = 'quantum' WHERE name = 'odd'", CHANGED)
    eventually(lambda: status("odd") == ["error"], what="the row edited to nonsense")
    assert (call("odd"), call("openai")) == (503, 200)

    by_hand(server, BREAK, CHANGED)
    before = server.metric(SUCCESS)
    eventually(lambda: server.metric(ATTEMPT) > server.metric(SUCCESS) >= before, what="a reload that fails")
    assert (status("openai"), status("odd"), status("off")) == (["enabled"], ["error"], ["disabled"])
    assert call("openai") == 200, "a failed reload takes nothing away"
    by_hand(server, MEND)
    eventually(lambda: server.metric(SUCCESS) > before, within=40, what="the next reload")
    eventually(lambda: server.metric("ostiary_link_up") == 1, what="the link")
