"""Who may do what: every route of the OpenAPI document, as every role and as nobody.

A route that is not in the table fails the test: who may call it has to be decided. Bodies are empty and ids are of
nothing, so what is allowed goes wrong later and changes nothing: all but 401 and 403 means that the door was open.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

import httpx
import pytest

from ostiary.control import database
from ostiary.control.app import create_app
from ostiary.control.events import Events
from ostiary.control.state import ControlPlane
from ostiary.control.vault import open_vault
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret
from ostiary.core.settings import ControlSettings
from tests.support.control_admin import Plane

OWNER: Final = frozenset({"owner"})
ADMINS: Final = OWNER | {"admin"}
AUDITORS: Final = OWNER | {"auditor"}
READERS: Final = ADMINS | {"auditor"}
ALL: Final = READERS | {"member"}
"""Of themselves, or less of it: what members see of others is the tests' of each route."""
ANYBODY: Final = ALL | {""}

ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    "GET /healthz": ANYBODY,
    "GET /readyz": ANYBODY,
    "GET /api/v2/ai-gateway/interceptions": ALL,
    "GET /api/v2/ai-gateway/interceptions/{interception_id}": ALL,
    "GET /api/v2/ai-gateway/sessions": ALL,
    "GET /api/v2/ai-gateway/sessions/{session_id}": ALL,
    "GET /api/v2/ai-gateway/models": ALL,
    "GET /api/v2/ai-gateway/clients": ALL,
    "GET /api/v2/ai-gateway/journals": AUDITORS,
    "GET /api/v2/ai-gateway/journals/{journal_id}": AUDITORS,
    "GET /api/v2/ai-gateway/replicas": READERS,
    "GET /api/v2/ai-gateway/storage": READERS,
    "GET /api/v2/ai-gateway/traffic": READERS,
    "GET /api/v2/ai-gateway/keys": OWNER,
    "POST /api/v2/ai-gateway/keys": OWNER,
    "DELETE /api/v2/ai-gateway/keys/{key_id}": OWNER,
    "GET /api/v2/ai/providers": ALL,
    "POST /api/v2/ai/providers": ADMINS,
    "GET /api/v2/ai/providers/{id_or_name}": ALL,
    "PATCH /api/v2/ai/providers/{id_or_name}": ADMINS,
    "DELETE /api/v2/ai/providers/{id_or_name}": ADMINS,
    "POST /api/v2/ai/providers/{id_or_name}/test": ADMINS,
    "GET /api/v2/ai/providers/{id_or_name}/keys": READERS,
    "GET /api/v2/users": READERS,
    "POST /api/v2/users": ADMINS,
    "GET /api/v2/users/{id_or_name}": READERS,
    "PATCH /api/v2/users/{id_or_name}": ADMINS,
    "DELETE /api/v2/users/{id_or_name}": ADMINS,
    "GET /api/v2/tokens": ALL,
    "POST /api/v2/tokens": ALL,
    "DELETE /api/v2/tokens/{token_id}": ALL,
    "GET /api/v2/audit": AUDITORS,
    "GET /api/v2/vault": READERS,
    "POST /api/v2/vault/rotate": OWNER,
    "GET /api/v2/diagnosis": ADMINS,
    "GET /api/v2/diagnosis/stored": ADMINS,
    "POST /api/v2/diagnosis/certificates": ADMINS,
}


def test_every_route_is_open_to_whom_the_table_says(settings: ControlSettings) -> None:
    asyncio.run(_all_routes(settings))


async def _all_routes(settings: ControlSettings) -> None:
    engine = await database.connect(settings.database_url)
    try:
        vault = await open_vault(engine, settings)
        app = create_app(ControlPlane(engine, settings, vault, Events(engine, settings.database_url)))
        plane = Plane(engine, settings, vault, app)
        tokens: dict[str, Secret | None] = {role: (await plane.user(f"a-{role}", role))[1] for role in sorted(ALL)}
        tokens[""] = None
        described = {f"{verb.upper()} {path}" for path, verbs in app.openapi()["paths"].items() for verb in verbs}
        assert described == set(ALLOWED), described ^ set(ALLOWED)
        wrong = []
        for route, allowed in ALLOWED.items():
            for role, token in tokens.items():
                answer = await _ask(plane, route, token)
                opened = answer.status_code not in (401, 403)
                if opened is not (role in allowed) or (not opened and answer.status_code != (403 if role else 401)):
                    wrong.append((route, role or "nobody", answer.status_code, answer.text))
                assert answer.status_code != 500, (route, answer.text)
        assert not wrong, "\n".join(map(str, wrong))
        await _aliases(plane, tokens["member"])
    finally:
        await engine.dispose()


async def _ask(plane: Plane, route: str, token: Secret | None) -> httpx.Response:
    verb, _, path = route.partition(" ")
    for name in ("interception_id", "session_id", "journal_id", "key_id", "id_or_name", "token_id"):
        path = path.replace(f"{{{name}}}", new_id())
    assert "{" not in path, path
    return await plane.call(token, verb, path, None if verb == "GET" else {"unknown": 1})


async def _aliases(plane: Plane, member: Secret | None) -> None:
    """The second prefix of the record leads through the same doors."""
    for route, allowed in ALLOWED.items():
        if "/ai-gateway/" in route:
            alias = route.replace("/ai-gateway/", "/aibridge/")
            assert (await _ask(plane, alias, None)).status_code == 401, alias
            if "member" not in allowed:
                assert (await _ask(plane, alias, member)).status_code == 403, alias


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("Recorder", "Record"),
        ("Authorizer", "IsAuthorized"),
        ("ProviderConfigurator", "GetAIProviders"),
        ("Fleet", "ReportStatus"),
    ],
)
def test_rpc_is_for_gateways_whatever_the_role(settings: ControlSettings, method: str, path: str) -> None:
    async def go() -> None:
        engine = await database.connect(settings.database_url)
        try:
            vault = await open_vault(engine, settings)
            app = create_app(ControlPlane(engine, settings, vault, Events(engine, settings.database_url)))
            plane = Plane(engine, settings, vault, app)
            for token in (None, (await plane.user("olga", "owner"))[1]):
                answer = await plane.call(token, "POST", f"/ostiary.v1.{method}/{path}", {})
                assert answer.status_code == 401, answer.text
                assert answer.json()["code"] == "unauthenticated"
        finally:
            await engine.dispose()

    asyncio.run(go())
