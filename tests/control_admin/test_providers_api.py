"""`/api/v2/ai/providers` (reference C.7): changes, their validation, who may make them, what is told of them."""

import asyncio
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy import select, text

from ostiary.control import providers
from ostiary.control.store.tables import ai_provider_keys, ai_providers, provider_revisions
from ostiary.core.secret import Secret
from tests.support.control_admin import Plane

PROVIDERS = "/api/v2/ai/providers"
OPENAI = {"type": "openai", "name": "openai", "base_url": "https://api.openai.com/v1/"}
KEY_A, KEY_B, KEY_C = "sk-aaaaaaaaaaaaaaaaaaaaaaaa", "sk-bbbbbbbbbbbbbbbbbbbbbbbb", "sk-cccccccccccccccccccccccc"


async def admin(plane: Plane) -> Secret:
    return (await plane.user("adam", "admin"))[1]


async def keys_of(plane: Plane, name: str) -> list[str]:
    async with plane.engine.connect() as conn:
        _, specs = await providers.read_all(conn, plane.vault)
    return [key.value.reveal() for spec in specs if spec.name == name for key in spec.keys]


async def revisions(plane: Plane) -> list[tuple[str, str]]:
    async with plane.engine.connect() as conn:
        rows = await conn.execute(select(provider_revisions).order_by(provider_revisions.c.revision))
        return [(row.actor, row.reason) for row in rows]


def test_a_provider_is_created_read_changed_and_deleted(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token = await admin(plane)
        made = await plane.call(
            token, "POST", PROVIDERS, {**OPENAI, "api_keys": [KEY_A, KEY_B], "display_name": "Main"}
        )
        assert made.status_code == 201
        provider = made.json()
        assert KEY_A not in made.text
        assert [key["masked"] for key in provider["api_keys"]] == ["sk-a...aaaa", "sk-b...bbbb"]
        assert (provider["enabled"], provider["display_name"], provider["settings"]) == (True, "Main", None)
        assert provider["status"] == {"state": "enabled", "reason": "", "warnings": []}
        for path in ("openai", provider["id"], provider["id"].upper()):
            assert (await plane.call(token, "GET", f"{PROVIDERS}/{path}")).json() == provider
        assert (await plane.call(token, "GET", PROVIDERS)).json() == [provider]
        changed = (
            await plane.call(token, "PATCH", f"{PROVIDERS}/openai", {"enabled": False, "display_name": ""})
        ).json()
        assert (changed["enabled"], changed["display_name"], changed["status"]["state"]) == (False, "", "disabled")
        assert changed["updated_at"] > provider["updated_at"]
        assert (await plane.call(token, "DELETE", f"{PROVIDERS}/openai")).status_code == 204
        assert (await plane.call(token, "GET", f"{PROVIDERS}/openai")).status_code == 404
        assert (await plane.call(token, "GET", f"{PROVIDERS}/{provider['id']}")).status_code == 404
        assert (await plane.call(token, "GET", PROVIDERS)).json() == []
        [deleted] = (await plane.call(token, "GET", PROVIDERS, deleted=True)).json()
        assert (deleted["id"], deleted["deleted"], deleted["enabled"]) == (provider["id"], True, False)
        assert (await plane.call(token, "POST", PROVIDERS, OPENAI)).status_code == 201
        assert await revisions(plane) == [
            ("adam", "create openai"),
            ("adam", "update openai"),
            ("adam", "delete openai"),
            ("adam", "create openai"),
        ]

    on_plane(body)


def test_deleting_leaves_the_row_and_no_secret(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token = await admin(plane)
        await plane.call(token, "POST", PROVIDERS, {**OPENAI, "api_keys": [KEY_A], "settings": {}})
        await plane.call(token, "DELETE", f"{PROVIDERS}/openai")
        async with plane.engine.connect() as conn:
            row = (await conn.execute(select(ai_providers))).one()
            assert (row.deleted, row.enabled, row.settings) == (True, False, None)
            assert (await conn.execute(select(ai_provider_keys))).all() == []

    on_plane(body)


SECRET = "settings.access_key_secret"


WRONG_PROVIDERS: list[tuple[Any, list[str]]] = [
    ({}, ["type", "name"]),
    ({**OPENAI, "type": "opnai"}, ["type"]),
    ({**OPENAI, "name": "Open AI"}, ["name"]),
    ({**OPENAI, "name": "sessions"}, ["name"]),
    ({**OPENAI, "base_url": ""}, ["base_url"]),
    ({**OPENAI, "base_url": "api.openai.com"}, ["base_url"]),
    ({**OPENAI, "base_url": "https://u:p@a.example"}, ["base_url"]),
    ({**OPENAI, "api_keys": ["ok", " sk", ""]}, ["api_keys[1]", "api_keys[2]"]),
    ({**OPENAI, "api_keys": ["a", "a"]}, ["api_keys[1]"]),
    ({**OPENAI, "api_keys": [str(n) for n in range(33)]}, ["api_keys"]),
    ({**OPENAI, "api_keys": [1]}, ["api_keys[0]"]),
    ({**OPENAI, "api_keys": "sk"}, ["api_keys"]),
    ({**OPENAI, "enabled": "perhaps"}, ["enabled"]),
    ({**OPENAI, "settings": {"_type": "bedrock"}}, ["settings._type"]),
    ({**OPENAI, "settings": {"selction": "x"}}, ["settings.selction"]),
    ({**OPENAI, "settings": "x"}, ["settings"]),
    ({**OPENAI, "display_name": "x" * 129, "icon": "a\x00"}, ["display_name", "icon"]),
    ({**OPENAI, "base_ulr": "x"}, ["base_ulr"]),
    ({"type": "copilot", "name": "c", "base_url": "https://a.example", "api_keys": ["k"]}, ["api_keys"]),
    ({"type": "bedrock", "name": "b"}, ["base_url", "settings"]),
    ({"type": "bedrock", "name": "b", "settings": {"region": "us-east-1"}, "api_keys": ["k"]}, ["api_keys"]),
    ({"type": "bedrock", "name": "b", "settings": {"region": "us-east-1", "access_key": "A"}}, [SECRET]),
    ([], ["body"]),
]  # fmt: skip


def test_a_wrong_provider_is_refused_field_by_field(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token = await admin(plane)
        for request, fields in WRONG_PROVIDERS:
            answer = await plane.call(token, "POST", PROVIDERS, request)
            assert answer.status_code == 400, request
            assert answer.json()["message"] == "Invalid AI provider request."
            assert [problem["field"] for problem in answer.json()["validations"]] == fields, request
            assert all(problem["detail"] for problem in answer.json()["validations"])
        assert await revisions(plane) == []
        assert await plane.audit() == []

    on_plane(body)


def test_a_body_that_is_no_json_is_refused_in_the_same_shape(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token = await admin(plane)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(plane.app), base_url="http://ostiary") as client:
            headers = {"Authorization": f"Bearer {token.reveal()}", "Content-Type": "application/json"}
            answer = await client.post(PROVIDERS, content=b'{"api_keys": ["sk-secret"', headers=headers)
        assert answer.status_code == 400
        assert answer.json()["message"] == "Invalid AI provider request."
        assert "sk-secret" not in answer.text

    on_plane(body)


async def posted(plane: Plane, token: Secret, path: str, content: bytes, kind: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(plane.app), base_url="http://ostiary") as client:
        headers = {"Authorization": f"Bearer {token.reveal()}", "Content-Type": kind}
        return await client.post(path, content=content, headers=headers)


def test_half_a_surrogate_pair_in_a_field_name_is_a_wrong_name(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        wrong = b'{"type": "openai", "name": "openai", "base_url": "https://a.example/", "settings": {"\\ud83d": 1}}'
        answer = await posted(plane, await admin(plane), PROVIDERS, wrong, "application/json")
        assert answer.status_code == 400
        assert [problem["field"] for problem in answer.json()["validations"]] == ["settings.?"]

    on_plane(body)


def test_json_that_is_not_said_to_be_json_is_told_how(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token = await admin(plane)
        for path in (PROVIDERS, "/api/v2/users"):
            answer = await posted(plane, token, path, b'{"name": "x"}', "application/x-www-form-urlencoded")
            assert answer.status_code == 400
            assert answer.json()["validations"] == [
                {"field": "body", "detail": "must be a JSON object, sent with Content-Type: application/json"}
            ]
            answer = await posted(plane, token, path, b"[]", "application/json")
            assert answer.json()["validations"] == [{"field": "body", "detail": "must be a JSON object"}]

    on_plane(body)


def test_a_bedrock_provider_without_models_is_warned_about(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token = await admin(plane)

        async def warnings(**settings: str) -> list[str]:
            shown = await plane.call(
                token, "PATCH", f"{PROVIDERS}/aws", {"settings": {"region": "us-east-1", **settings}}
            )
            assert shown.json()["status"]["state"] == "enabled"
            return list(shown.json()["status"]["warnings"])

        aws = {"type": "bedrock", "name": "aws", "settings": {"region": "us-east-1"}}
        made = (await plane.call(token, "POST", PROVIDERS, aws)).json()
        assert ["503" in warning for warning in made["status"]["warnings"]] == [True]
        assert "no small_fast_model in" in (await warnings(model="m"))[0]
        assert await warnings(model="m", small_fast_model="s") == []

    on_plane(body)


def test_a_suggestion_helps_with_a_typo(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token = await admin(plane)
        answer = await plane.call(token, "POST", PROVIDERS, {**OPENAI, "base_ulr": "x", "settings": {"selction": "x"}})
        assert "did you mean base_url?" in answer.text
        del_typo = await plane.call(token, "POST", PROVIDERS, {**OPENAI, "settings": {"selction": "x"}})
        assert "did you mean selection?" in del_typo.text

    on_plane(body)


def test_a_name_is_taken_also_when_two_ask_at_once(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token = await admin(plane)
        answers = await asyncio.gather(*(plane.call(token, "POST", PROVIDERS, OPENAI) for _ in range(4)))
        assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
        assert 'AI provider "openai" already exists.' in {
            answer.json()["message"] for answer in answers if answer.is_error
        }

    on_plane(body)


def test_a_wrong_or_unknown_id(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token = await admin(plane)
        for method in ("GET", "PATCH", "DELETE"):
            change = {"enabled": False} if method == "PATCH" else None
            for path, status in (
                ("Open AI", 400),
                ("x_y", 400),
                ("nobody", 404),
                ("0190a7d2-0000-7000-8000-000000000000", 404),
            ):
                assert (await plane.call(token, method, f"{PROVIDERS}/{path}", change)).status_code == status, path

    on_plane(body)


# --- PATCH


async def with_keys(plane: Plane, *keys: str) -> tuple[Secret, list[str]]:
    token = await admin(plane)
    made = await plane.call(token, "POST", PROVIDERS, {**OPENAI, "api_keys": list(keys)})
    return token, [key["id"] for key in made.json()["api_keys"]]


def test_the_key_list_of_a_change_is_the_whole_new_state(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token, [a, b] = await with_keys(plane, KEY_A, KEY_B)

        async def change(*entries: Any) -> list[str]:
            answer = await plane.call(token, "PATCH", f"{PROVIDERS}/openai", {"api_keys": list(entries)})
            assert answer.status_code == 200, answer.text
            return [key["id"] for key in answer.json()["api_keys"]]

        assert await change({"id": b}, {"id": a}) == [b, a]
        assert await keys_of(plane, "openai") == [KEY_B, KEY_A]
        [new, first] = await change({"api_key": KEY_C}, {"id": b})
        assert first == b
        assert await keys_of(plane, "openai") == [KEY_C, KEY_B]
        assert await change({"id": b}, {"id": new}) == [b, new]
        assert await change() == []
        assert await keys_of(plane, "openai") == []
        [again] = await change({"api_key": KEY_A})
        assert again != a

    on_plane(body)


def test_other_changes_leave_the_keys_alone(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token, ids = await with_keys(plane, KEY_A, KEY_B)
        elsewhere = {"base_url": "https://api.openai.com/another/path", "icon": "door"}
        changed = await plane.call(token, "PATCH", f"{PROVIDERS}/openai", elsewhere)
        assert (changed.json()["base_url"], changed.json()["icon"]) == tuple(elsewhere.values())
        assert [key["id"] for key in changed.json()["api_keys"]] == ids
        assert await keys_of(plane, "openai") == [KEY_A, KEY_B]

    on_plane(body)


@pytest.mark.parametrize(
    "url",
    [
        "https://thief.example/v1",
        "http://api.openai.com/v1",
        "https://api.openai.com:8443/v1",
        "https://api.openai.com.thief.example/v1",
    ],
)
def test_an_admin_cannot_send_stored_keys_to_another_origin(on_plane: Any, url: str) -> None:
    async def body(plane: Plane) -> None:
        token, (first, second) = await with_keys(plane, KEY_A, KEY_B)
        path = f"{PROVIDERS}/openai"
        kept: list[dict[str, Any]] = [
            {},
            {"api_keys": [{"id": second}]},
            {"api_keys": [{"id": first}, {"api_key": KEY_C}]},
        ]
        for with_them in kept:
            refused = await plane.call(token, "PATCH", path, {"base_url": url, **with_them})
            assert refused.status_code == 400
            (problem,) = refused.json()["validations"]
            assert problem["field"] == "base_url"
            assert "give the keys anew" in problem["detail"]
        assert await keys_of(plane, "openai") == [KEY_A, KEY_B]
        anew = {"base_url": url, "api_keys": [{"api_key": KEY_C}]}
        assert (await plane.call(token, "PATCH", path, anew)).json()["base_url"] == url
        assert await keys_of(plane, "openai") == [KEY_C]
        _, owner = await plane.user("olga", "owner")
        moved = await plane.call(owner, "PATCH", path, {"base_url": "https://elsewhere.example"})
        assert moved.json()["base_url"] == "https://elsewhere.example"
        assert await keys_of(plane, "openai") == [KEY_C]

    on_plane(body)


def test_the_same_origin_may_be_written_otherwise(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token, _ = await with_keys(plane, KEY_A)
        same = await plane.call(token, "PATCH", f"{PROVIDERS}/openai", {"base_url": "https://API.openai.com:443/v1"})
        assert same.status_code == 200, same.text
        assert await keys_of(plane, "openai") == [KEY_A]
        # without a key there is nothing to send
        await plane.call(token, "PATCH", f"{PROVIDERS}/openai", {"api_keys": []})
        moved = await plane.call(token, "PATCH", f"{PROVIDERS}/openai", {"base_url": "https://b.example"})
        assert moved.status_code == 200

    on_plane(body)


WRONG_CHANGES: list[tuple[Any, list[str]]] = [
    ({}, []),
    ({"display_name": None}, []),
    ({"name": "other"}, ["name"]),
    ({"type": "azure"}, ["type"]),
    ({"base_url": ""}, ["base_url"]),
    ({"api_keys": [{}]}, ["api_keys[0]"]),
    ({"api_keys": [{"id": "x", "api_key": "y"}]}, ["api_keys[0]"]),
    ({"api_keys": [{"id": "0190a7d2-0000-7000-8000-000000000000"}]}, ["api_keys[0]"]),
    ({"api_keys": [{"api_key": ""}]}, ["api_keys[0]"]),
    ({"api_keys": [{"key": "sk"}]}, ["api_keys[0].key"]),
    ({"api_keys": ["sk-1"]}, ["api_keys[0]"]),
    ({"settings": {"_type": "anthropic"}}, ["settings._type"]),
    ({"settings": {"api_version": "1"}}, ["settings.api_version"]),
]


def test_a_wrong_change_is_refused_field_by_field(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token, _ = await with_keys(plane, KEY_A)
        for change, fields in WRONG_CHANGES:
            answer = await plane.call(token, "PATCH", f"{PROVIDERS}/openai", change)
            assert answer.status_code == 400, change
            assert answer.json()["message"] == "Invalid AI provider request."
            assert [problem["field"] for problem in answer.json()["validations"]] == fields, change
            assert fields or "at least one field" in answer.json()["detail"]
            assert "sk-1" not in answer.text
        assert len(await revisions(plane)) == 1

    on_plane(body)


def test_the_same_key_twice_is_refused_also_against_a_kept_one(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token, [a] = await with_keys(plane, KEY_A)
        twice = {"api_keys": [{"id": a}, {"api_key": KEY_A}]}
        answer = await plane.call(token, "PATCH", f"{PROVIDERS}/openai", twice)
        assert [problem["field"] for problem in answer.json()["validations"]] == ["api_keys[1]"]
        assert KEY_A not in answer.text

    on_plane(body)


def test_settings_are_replaced_kept_and_cleared_and_their_secrets_never_shown(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token = await admin(plane)
        secrets = {"access_key": "AKIAIOSFODNN7EXAMPLE", "access_key_secret": "wJalrXUtnFEMI-EXAMPLEKEY"}
        aws = {"region": "us-east-1", **secrets}
        role = "arn:aws:iam::123456789012:role/gateway"
        made = await plane.call(
            token,
            "POST",
            PROVIDERS,
            {"type": "anthropic", "name": "aws", "settings": {"_type": "bedrock", "role_arn": role, **aws}},
        )
        assert made.status_code == 201, made.text
        shown = made.json()["settings"]
        assert made.json()["effective_type"] == "bedrock"
        assert made.json()["type"] == "anthropic"
        assert set(shown) == {"_type", "_version", "region", "role_arn", "external_id"}
        external_id = shown["external_id"]
        assert len(external_id) >= 24

        async def stored() -> Any:
            async with plane.engine.connect() as conn:
                return (await providers.read_all(conn, plane.vault))[1][0].settings

        async def change(settings: Any) -> Any:
            answer = await plane.call(token, "PATCH", f"{PROVIDERS}/aws", {"settings": settings})
            assert "AKIAIOSFODNN7EXAMPLE" not in answer.text
            return answer

        # what was shown can be sent back changed, and loses no secret
        assert (await change({**shown, "region": "eu-west-1"})).status_code == 200
        after = await stored()
        assert (after.region, after.access_key, after.external_id) == (
            "eu-west-1",
            Secret("AKIAIOSFODNN7EXAMPLE"),
            external_id,
        )
        assert (await change({**shown, "external_id": "mine"})).status_code == 400
        assert (await change({**shown, "access_key": ""})).status_code == 400
        assert (await change({**shown, "access_key": "", "access_key_secret": ""})).status_code == 200
        assert not (await stored()).access_key
        # null: back to a plain Anthropic provider, which needs an address
        assert (await change(None)).status_code == 400
        cleared = await plane.call(
            token, "PATCH", f"{PROVIDERS}/aws", {"settings": None, "base_url": "https://api.anthropic.com/"}
        )
        assert (cleared.json()["settings"], cleared.json()["effective_type"]) == (None, "anthropic")
        entries = [entry for entry in await plane.audit() if entry["resource_type"] == "ai_provider"]
        assert entries[0]["after"]["settings"]["access_key"] == "AKIA...MPLE"
        assert "wJalrXUtnFEMI-EXAMPLEKEY" not in repr(entries)

    on_plane(body)


def test_a_change_that_changes_nothing_makes_no_revision(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token, [a] = await with_keys(plane, KEY_A)
        entries = len(await plane.audit())
        for same in (
            {"enabled": True},
            {"base_url": OPENAI["base_url"]},
            {"api_keys": [{"id": a}]},
            {"settings": None},
        ):
            assert (await plane.call(token, "PATCH", f"{PROVIDERS}/openai", same)).status_code == 200
        assert len(await revisions(plane)) == 1
        assert len(await plane.audit()) == entries

    on_plane(body)


# --- who may, and what is told


@pytest.mark.parametrize(("role", "may"), [("owner", True), ("admin", True), ("auditor", False), ("member", False)])
def test_who_may_change_and_who_may_read(on_plane: Any, role: str, may: bool) -> None:
    async def body(plane: Plane) -> None:
        token, _ = await with_keys(plane, KEY_A)
        _, caller = await plane.user("caller", role)
        for method, path, change, success in (
            ("POST", PROVIDERS, {**OPENAI, "name": "second"}, 201),
            ("PATCH", f"{PROVIDERS}/openai", {"api_keys": []}, 200),
            ("DELETE", f"{PROVIDERS}/openai", None, 204),
        ):
            assert (await plane.call(caller, method, path, change)).status_code == (success if may else 403)
            assert (await plane.call(None, method, path, change)).status_code == 401
        await plane.call(token, "POST", PROVIDERS, {**OPENAI, "name": "third", "api_keys": [KEY_B]})
        one = await plane.call(caller, "GET", f"{PROVIDERS}/third")
        assert one.status_code == 200
        if role == "member":
            assert one.json() == {"name": "third", "display_name": "", "status": "enabled"}
            assert {
                frozenset(entry) for entry in (await plane.call(caller, "GET", PROVIDERS, deleted=True)).json()
            } == {frozenset(("name", "display_name", "status"))}
        else:
            assert one.json()["api_keys"][0]["masked"] == "sk-b...bbbb"
        assert KEY_B not in one.text

    on_plane(body)


def test_each_added_and_removed_key_has_its_audit_entry(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token, [a, b] = await with_keys(plane, KEY_A, KEY_B)
        await plane.call(token, "PATCH", f"{PROVIDERS}/openai", {"api_keys": [{"id": b}, {"api_key": KEY_C}]})
        await plane.call(token, "DELETE", f"{PROVIDERS}/openai")
        entries = await plane.audit()
        told = [(entry["action"], entry["resource_type"]) for entry in entries]
        key, provider = "ai_provider_key", "ai_provider"
        assert told == [
            *[("create", key), ("create", key), ("create", provider)],
            *[("create", key), ("delete", key), ("update", provider)],
            *[("delete", key), ("delete", key), ("delete", provider)],
        ]
        update = entries[5]
        assert update["additional"]["removed"] == [{"id": a, "masked": "sk-a...aaaa"}]
        assert update["additional"]["kept"] == 1
        assert [entry["masked"] for entry in update["additional"]["added"]] == ["sk-c...cccc"]
        assert entries[4]["before"]["api_key"] == "sk-a...aaaa"
        assert {(entry["actor"], entry["source_ip"]) for entry in entries} == {("adam", "127.0.0.1")}
        for secret in (KEY_A, KEY_B, KEY_C):
            assert secret not in repr(entries)

    on_plane(body)


def test_listeners_hear_of_a_change_when_it_is_committed(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token = await admin(plane)
        heard: asyncio.Queue[str] = asyncio.Queue()
        dsn = plane.settings.database_url.reveal().replace("+asyncpg", "", 1)
        listener = await asyncpg.connect(dsn)
        try:
            await listener.add_listener(providers.CHANNEL, lambda *args: heard.put_nowait(args[3]))
            await plane.call(token, "POST", PROVIDERS, OPENAI)
            assert await asyncio.wait_for(heard.get(), 10) == "1"
            await plane.call(token, "POST", PROVIDERS, OPENAI)  # refused
            await plane.call(token, "PATCH", f"{PROVIDERS}/openai", {"enabled": False})
            assert await asyncio.wait_for(heard.get(), 10) == "2"
            assert heard.empty()
        finally:
            await listener.close()

    on_plane(body)


def test_a_revision_that_is_seen_implies_all_before_it(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        token = await admin(plane)
        names = [f"p{number}" for number in range(12)]
        changes = asyncio.gather(*(plane.call(token, "POST", PROVIDERS, {**OPENAI, "name": name}) for name in names))
        while not changes.done():
            async with plane.engine.connect() as conn:
                revision, specs = await providers.read_all(conn, plane.vault)
            assert len(specs) == revision
        assert {answer.status_code for answer in await changes} == {201}

    on_plane(body)


def test_no_answer_log_or_row_holds_a_key_in_clear(on_plane: Any, capfd: pytest.CaptureFixture[str]) -> None:
    async def body(plane: Plane) -> None:
        token, _ = await with_keys(plane, KEY_A, KEY_B)
        answers = [
            await plane.call(token, "GET", PROVIDERS),
            await plane.call(token, "PATCH", f"{PROVIDERS}/openai", {"api_keys": [{"api_key": KEY_C}]}),
            await plane.call(token, "PATCH", f"{PROVIDERS}/openai", {"api_keys": [{"api_key": f"{KEY_C} "}]}),
            await plane.call(token, "PATCH", f"{PROVIDERS}/openai", {"api_keys": [KEY_C]}),
            await plane.call(token, "POST", PROVIDERS, {**OPENAI, "settings": {"_type": KEY_C}, "x": KEY_C}),
        ]
        said = "".join(answer.text for answer in answers)
        async with plane.engine.connect() as conn:
            for table in ("ai_providers", "ai_provider_keys", "audit_log", "provider_revisions"):
                said += "\n".join((await conn.execute(text(f"SELECT {table}::text FROM {table}"))).scalars().all())
        printed = capfd.readouterr()
        for secret in (KEY_A, KEY_B, KEY_C):
            assert secret not in said + printed.out + printed.err

    on_plane(body)
