"""The REST API under fire: for every operation of its OpenAPI document, inputs that fit and inputs that do not.

Whoever asks: nothing is an error of the server, every error has the one shape, every answer has a status and a body that the
document names, and no secret stands in it. FUZZ=1 asks more often, and never the same.
"""

import asyncio
import json
import os
import random
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

import httpx

from ostiary.control import database
from ostiary.control.api.errors import ErrorBody
from ostiary.control.app import create_app
from ostiary.control.events import Events
from ostiary.control.ingest import Ingest
from ostiary.control.state import ControlPlane
from ostiary.control.vault import open_vault
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret
from ostiary.core.settings import ControlSettings
from tests.support.control_admin import Plane, control_settings, vault_key
from tests.support.json_schema import problem
from tests.support.records import encoded, end, start

ROUNDS: Final = 100 if os.environ.get("FUZZ") else 6
"""Of each operation, by each caller."""

PROVIDER_SECRET: Final = "sk-planted-0123456789abcdefghijklmnop"
VAULT_KEY: Final = vault_key(7)
FOUND: Final = (
    "/api/v2/ai-gateway/sessions/%00",
    "/api/v2/ai-gateway/sessions?after_session_id=x%00",
    "/api/v2/audit?actor=%00",
)
"""Was an error of the server once, or nearly."""

OPEN: Final = {"/healthz", "/readyz"}

Json = dict[str, Any]

WORDS: Final = (
    *(
        "",
        "a",
        "me",
        "x" * 300,
        "é",
        "\U0001f600",
        "\x00",
        "a\x00b",
        "\ud800",
        "a\r\nX-Injected: 1",
        " ",
        "%",
        "%00",
        "..",
        "../../x",
    ),
    *(
        "' OR 1=1 --",
        '"',
        "\\",
        "{}",
        "[]",
        "null",
        "true",
        "-1",
        "9" * 40,
        "1e999",
        "NaN",
        "owner",
        "admin",
        "member",
        "active",
    ),
    *("2026-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "2026-13-01", "infinity", "1 day"),
    *(
        "openai",
        "anthropic",
        "bedrock",
        "http://127.0.0.1:9/v1",
        "https://[::1]:9/",
        "http://",
        "http://127.0.0.1:99999/",
        "127.0.0.1:9",
    ),
    *(
        "model:x",
        'q:"',
        "started_after:2026-01-01",
        "started_after:x",
        "provider:\x00",
        ":",
        "a:b:c",
        "initiator:me status:error",
    ),
)
VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**30,
    1.5,
    1e308,
    [],
    {},
    [[]],
    {"a": {}},
    ["", ""],
)


class Author:
    """Writes requests for operations. `ids`: what exists, for paths."""

    def __init__(self, document: Json, ids: list[str], rng: random.Random) -> None:
        self._schemas: Json = document["components"]["schemas"]
        self._ids = ids
        self._rng = rng

    def value(self, schema: Json, depth: int = 0) -> Any:
        """Mostly what the schema wants, sometimes what it does not."""
        rng = self._rng
        if rng.random() < 0.15:
            return rng.choice((*VALUES, *WORDS))
        if "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                return self.value(rng.choice(schema[several]), depth)
        if "enum" in schema:
            return rng.choice(schema["enum"])
        if "const" in schema:
            return schema["const"]
        match schema.get("type"):
            case "object":
                return self._object(schema, depth)
            case "array":
                count = 0 if depth > 4 else rng.choice((0, 1, 1, 2, 30))
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(count)]
            case "integer":
                return rng.choice((schema.get("minimum", 0), schema.get("maximum", 1), 1, 2**31, 2**63, -(2**63)))
            case "number":
                return rng.choice((0, 1.5, -1e308))
            case "boolean":
                return rng.random() < 0.5
            case "null":
                return None
        return self.word()

    def _object(self, schema: Json, depth: int) -> Json:
        required = schema.get("required", [])
        made = {
            name: self.value(member, depth + 1)
            for name, member in schema.get("properties", {}).items()
            if self._rng.random() < (0.97 if name in required else 0.4)
        }
        if self._rng.random() < 0.05:
            made[self.word()] = self.word()
        return made

    def word(self) -> str:
        return self._rng.choice((*WORDS, *self._ids, f"fuzz-{self._rng.randrange(20)}"))

    def request(self, path: str, operation: Json) -> tuple[str, bytes, dict[str, str]]:
        """Target, body and headers."""
        query = []
        for parameter in operation.get("parameters", ()):
            value = self.value(parameter.get("schema", {}))
            text = value if isinstance(value, str) else json.dumps(value)
            quoted = quote(text.encode("utf-8", "surrogatepass"), safe="")
            if parameter["in"] == "path":
                chosen = quoted if self._rng.random() < 0.4 else self._rng.choice(self._ids)
                path = path.replace("{" + parameter["name"] + "}", chosen or "x")
            elif parameter["in"] == "query" and self._rng.random() < 0.7:
                query.append(f"{parameter['name']}={quoted}")
        target = path + ("?" + "&".join(query) if query else "")
        if "requestBody" not in operation:
            return target, b"", {}
        ((_, content),) = operation["requestBody"]["content"].items()
        body = json.dumps(self.value(content["schema"])).encode()
        if self._rng.random() < 0.1:
            body = self._rng.choice((b"", b"{", b"\xff", body[:-1], b"[" * 3000, b"{" + b'"a":{' * 3000, body + b"x"))
        kind = self._rng.choice(("application/json",) * 9 + ("text/plain",))
        return target, body, {"content-type": kind}


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in sorted(document["paths"].items()):
        for method, operation in sorted(methods.items()):
            yield path, method.upper(), operation


def wrong_with(
    path: str, operation: Json, components: Json, caller: str, answer: httpx.Response, secrets: list[str]
) -> str:
    """What an answer must not be; empty when it is fine."""
    if answer.status_code >= 500:
        return "an error of the server"
    if any(secret in answer.text for secret in secrets):
        return "a secret in the answer"
    if any(secret in value for secret in secrets for value in answer.headers.values()):
        return "a secret in a header"
    if "x-ostiary-request-id" not in answer.headers or "x-injected" in answer.headers:
        return "wrong headers"
    if caller == "nobody" and path not in OPEN and answer.status_code < 400:
        return "an answer to nobody"
    responses = operation["responses"]
    documented = responses.get(str(answer.status_code)) or (responses["default"] if answer.status_code >= 400 else None)
    if documented is None:
        return "a status that is not documented"
    if "content" not in documented:
        return "" if not answer.content else "a body that is not documented"
    ((kind, content),) = documented["content"].items()
    if answer.headers["content-type"] != kind:
        return f"not {kind}"
    body = answer.json()
    if answer.status_code >= 400 and (set(body) != set(ErrorBody.model_fields) or not body["message"]):
        return "an error of another shape"
    return problem(body, content["schema"], components)


async def _fire(settings: ControlSettings) -> list[str]:
    engine = await database.connect(settings.database_url)
    wrong: list[str] = []
    try:
        vault = await open_vault(engine, settings)
        app = create_app(ControlPlane(engine, settings, vault, Events(engine, settings.database_url)))
        plane = Plane(engine, settings, vault, app)
        _, owner = await plane.user("the-owner", "owner")
        member, token = await plane.user("the-member")
        other, others = await plane.user("somebody")
        provider = {
            "name": "planted",
            "type": "openai",
            "base_url": "http://127.0.0.1:9/v1",
            "api_keys": [PROVIDER_SECRET],
        }
        made = await plane.call(owner, "POST", "/api/v2/ai/providers", provider)
        assert made.status_code == 201, made.text
        secrets = [
            *(PROVIDER_SECRET, VAULT_KEY.reveal(), settings.gateway_key.reveal(), settings.front_door_secret.reveal()),
            *(owner.reveal(), token.reveal(), others.reveal(), settings.database_url.reveal()),
        ]
        calls = [start(initiator_id=one.id, client_session_id="s-1") for one in (member, member, other)]
        ends = [end(calls[0], calls=["toolu_1"]), end(calls[1], outcome="upstream_error", error_type="timeout")]
        assert not (await Ingest(engine).store(new_id(), 1, encoded([*calls, *ends]))).rejected
        document = app.openapi()
        components = document["components"]["schemas"]
        rng = random.Random(None if os.environ.get("FUZZ") else "openapi")
        known = [member.id, other.id, made.json()["id"], calls[0].id, "s-1", "planted", "somebody", new_id()]
        author = Author(document, known, rng)
        callers: dict[str, Secret | None] = {"owner": owner, "member": token, "nobody": None}
        succeeded: set[tuple[str, str]] = set()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://ostiary") as client:
            for target in FOUND:
                answer = await client.get(target, headers={"authorization": f"Bearer {owner.reveal()}"})
                assert answer.status_code == 400, (target, answer.text)
            for _ in range(ROUNDS):
                for path, method, operation in operations(document):
                    for caller, bearer in callers.items():
                        target, body, headers = author.request(path, operation)
                        if bearer is not None:
                            headers["authorization"] = f"Bearer {bearer.reveal()}"
                        answer = await client.request(method, target, content=body, headers=headers)
                        if answer.is_success:
                            succeeded.add((method, path))
                        if found := wrong_with(path, operation, components, caller, answer, secrets):
                            asked = f"{method} {target} {body[:300]!r} as {caller}"
                            wrong.append(f"{found}: {asked}: {answer.status_code} {answer.text[:300]}")
        still = await plane.call(owner, "GET", "/api/v2/users")
        assert still.status_code == 200, "the last owner could be locked out"
        assert len(succeeded) > 15, f"hardly anything was accepted: {succeeded}"
    finally:
        await engine.dispose()
    return wrong


def test_no_input_is_an_error_of_the_server(database_url: Secret, tmp_path: Any) -> None:
    settings = control_settings(
        database_url,
        tmp_path,
        encryption_keys=(VAULT_KEY,),
        gateway_key=Secret("gateway-key-that-nobody-may-see"),
        front_door_secret=Secret("front-door-that-nobody-may-see"),
    )
    wrong = asyncio.run(_fire(settings))
    assert not wrong, f"{len(wrong)} wrong answers, among them:\n" + "\n".join(wrong[:20])
