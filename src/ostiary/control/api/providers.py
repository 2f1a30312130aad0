"""`/api/v2/ai/providers`: the configured upstreams.

Owners and admins change them; auditors read them; everybody else sees names and status. Keys and secrets of settings
go in and never come out.
"""

from collections.abc import Callable, Coroutine
from difflib import get_close_matches
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response, status
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from ostiary.control import audit
from ostiary.control.identity import Person
from ostiary.control.providers import (
    ProviderSummary,
    ProviderView,
    create_provider,
    delete_provider,
    get_provider,
    list_providers,
    update_provider,
)
from ostiary.control.providers.changes import INVALID, NewProvider, ProviderChanges
from ostiary.control.providers.requests import KeyEntry
from ostiary.control.providers.rows import read_row, stored_keys
from ostiary.control.providers.trial import ProviderTrial, try_keys
from ostiary.control.providers.views import find_row, summary
from ostiary.core.secret import Secret

from .deps import Control, CurrentUser, ReadConnection, RequestOrigin, require_role
from .errors import ApiError, FieldProblem, problem_detail

_SETTINGS_SCHEMA: dict[str, Any] = {
    "description": (
        "`{_type: openai, stream_usage, selection, api_version}`, `{_type: anthropic, selection}` or `{_type: bedrock, "
        "region, model, small_fast_model, access_key, access_key_secret, role_arn, external_id, protocol}`; `_version` "
        "is 1. Of a change: null clears; access key and secret that are left out stay, an empty text clears them."
    ),
    "examples": [{"_type": "openai", "_version": 1, "selection": "spread"}],
}


class _ProviderRoute(APIRoute):
    """Gives a body that does not fit its model the answer that every other wrong provider request gets."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            body = CreateProvider if request.method == "POST" else UpdateProvider
            try:
                return await handle(request)
            except RequestValidationError as exc:
                raise ApiError(400, INVALID, validations=_field_problems(exc, body, request)) from None

        return answer


router = APIRouter(prefix="/api/v2/ai/providers", tags=["providers"], route_class=_ProviderRoute)

Writer = Annotated[Person, Depends(require_role("admin"))]


class CreateProvider(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: str = ""
    """openai, anthropic, bedrock, copilot, azure, google, vercel, openrouter or openai-compat."""
    name: str = ""
    """Part of the path that clients use: lowercase letters, digits and single hyphens."""
    display_name: str = ""
    icon: str = ""
    enabled: bool = True
    base_url: str = ""
    api_keys: list[SecretStr] = []
    """In the order of failover."""
    settings: dict[str, Any] | None = Field(default=None, json_schema_extra=_SETTINGS_SCHEMA)


class KeyChange(BaseModel):
    """Exactly one of the two: keep a key, or add one."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = None
    api_key: SecretStr | None = None


class UpdateProvider(BaseModel):
    """What to change. Type and name stay as they are."""

    model_config = ConfigDict(extra="forbid")

    display_name: str | None = None
    icon: str | None = None
    enabled: bool | None = None
    base_url: str | None = None
    api_keys: list[KeyChange] | None = None
    """The whole list as it shall be: keys that are not named are removed."""
    settings: dict[str, Any] | None = Field(default=None, json_schema_extra=_SETTINGS_SCHEMA)


@router.get("")
async def list_all(
    caller: CurrentUser,
    control: Control,
    conn: ReadConnection,
    deleted: Annotated[bool, Query(description="Also those that were deleted.")] = False,
) -> list[ProviderView] | list[ProviderSummary]:
    """All providers by name, disabled ones too. Members get names and status."""
    found = await list_providers(conn, control.vault, deleted=deleted and caller.role != "member")
    return found if caller.role != "member" else [summary(provider) for provider in found]


@router.post("", status_code=status.HTTP_201_CREATED)
async def create(body: CreateProvider, caller: Writer, control: Control, origin: RequestOrigin) -> ProviderView:
    """Add a provider; gateways serve it as soon as they have heard of it."""
    wanted = NewProvider(
        **body.model_dump(include={"type", "name", "display_name", "icon", "enabled", "base_url", "settings"}),
        api_keys=tuple(_secret(key) for key in body.api_keys),
    )
    async with control.engine.begin() as conn:
        return await create_provider(conn, control.vault, wanted, caller.actor, origin)


@router.get("/{id_or_name}")
async def get(
    id_or_name: str, caller: CurrentUser, control: Control, conn: ReadConnection
) -> ProviderView | ProviderSummary:
    """One provider."""
    found = await get_provider(conn, control.vault, id_or_name)
    return found if caller.role != "member" else summary(found)


@router.patch("/{id_or_name}")
async def update(
    id_or_name: str, body: UpdateProvider, caller: Writer, control: Control, origin: RequestOrigin
) -> ProviderView:
    """Change a provider.

    A `base_url` of another origin (scheme, host, port) sends the keys there: from admins it comes with its keys given anew,
    owners may let it have those that are stored.
    """
    keys = None
    if body.api_keys is not None:
        keys = tuple(
            KeyEntry(entry.id, _secret(entry.api_key) if entry.api_key is not None else None) for entry in body.api_keys
        )
    changes = ProviderChanges(
        **body.model_dump(include={"display_name", "icon", "enabled", "base_url", "settings"}),
        api_keys=keys,
        clear_settings="settings" in body.model_fields_set and body.settings is None,
    )
    async with control.engine.begin() as conn:
        moves_keys = caller.role == "owner"
        return await update_provider(
            conn, control.vault, id_or_name, changes, caller.actor, origin, moves_keys=moves_keys
        )


@router.post("/{id_or_name}/test")
async def test(id_or_name: str, caller: Writer, control: Control, origin: RequestOrigin) -> ProviderTrial:
    """Call the provider once with each of its keys, also when it is disabled: which work, which do not, and why.

    What is called costs nothing: the list of models, or what the provider tells of a key.
    """
    async with control.engine.connect() as conn:
        row = await find_row(conn, id_or_name)
        read = read_row(control.vault, row)
        keys = (await stored_keys(conn, control.vault, [row["id"]]))[row["id"]]
    try:
        if read.problem or read.kind is None:
            raise ValueError(read.problem)  # noqa: TRY301 - told as what only the trial finds out
        found = await try_keys(row["name"], read.kind, row["base_url"], read.settings, keys, control.settings)
    except ValueError as exc:
        raise ApiError(409, "The provider cannot be called.", str(exc)) from None
    results = [{"id": key.id, "masked": key.masked, "result": key.result} for key in found.keys]
    async with control.engine.begin() as conn:
        tested = audit.Resource("ai_provider", row["id"], row["name"])
        additional = {"called": found.called, "keys": results}
        await audit.record(conn, caller.actor, "test", tested, additional=additional, origin=origin)
    return found


@router.delete("/{id_or_name}", status_code=status.HTTP_204_NO_CONTENT)
async def delete(id_or_name: str, caller: Writer, control: Control, origin: RequestOrigin) -> None:
    """Delete a provider and its keys. The environment does not bring it back."""
    async with control.engine.begin() as conn:
        await delete_provider(conn, control.vault, id_or_name, caller.actor, origin)


def _secret(value: SecretStr) -> Secret:
    return Secret(value.get_secret_value())


def _field_problems(exc: RequestValidationError, body: type[BaseModel], request: Request) -> list[FieldProblem]:
    """Without pydantic's `input`, which may be a key."""
    found = []
    for error in exc.errors():
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"][1:]).lstrip(".")
        if error["type"] == "json_invalid":
            place = "body"
        detail = problem_detail(error, request)
        if error["type"] == "extra_forbidden":
            detail = _unknown_field(place, body)
        found.append(FieldProblem(field=place or "body", detail=detail))
    return found


def _unknown_field(place: str, body: type[BaseModel]) -> str:
    if place in ("name", "type"):
        return "cannot be changed: make a new provider"
    allowed = list(KeyChange.model_fields if "[" in place else body.model_fields)
    close = get_close_matches(place.rpartition(".")[2], allowed, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"is not a field{hint}; fields are {', '.join(allowed)}"
