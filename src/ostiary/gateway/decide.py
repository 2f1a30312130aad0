"""Every decision about a request. Pure: what it needs comes in, what is to be done comes out.

In the order of a request's life (design §5): `credential_of` says who asks, `identified` whether they may, `locate` and
`admit` where the request goes, `check` whether it can be served, `own_credential` with which credential of the client's own;
the rest are the refusals for want of memory, of a key, or of an upstream. A `Refusal` ends a request.
"""

from typing import Final

from msgspec import Struct

from ostiary.core.health import BreakerSubject
from ostiary.core.identity import Identity
from ostiary.core.identity import Refusal as TokenRefusal
from ostiary.core.secret import mask
from ostiary.http1.connections import BODY_RATE
from ostiary.http1.fields import CREDENTIALS
from ostiary.wire.content_coding import DecodedTooLongError, UnsupportedCodingError
from ostiary.wire.facts import RequestFacts

from .authorizations import Answer, Unavailable
from .keypool import Exhausted
from .providers import RuntimeProvider
from .providers.adapter import AdapterError
from .refusals import Refusal
from .routes import Route, Target, path_problem
from .snapshot import Snapshot


class Presented(Struct, frozen=True):
    """The token a request presents. `byok`: the client brings its own credential for the provider besides."""

    token: bytes
    byok: bool

    def __repr__(self) -> str:
        return f"Presented(***, byok={self.byok})"


def credential_of(fields: dict[bytes, bytes]) -> Presented | None:
    """`X-Ostiary-Token` (or its alias), whose presence means BYOK, then `Authorization: Bearer`, `X-Api-Key`, and
    `Api-Key`, where Azure's clients put it."""
    token = fields.get(b"x-ostiary-token") or fields.get(b"x-coder-ai-governance-token")
    if token:
        return Presented(token, byok=True)
    bearer = _bearer(fields)
    if bearer:
        return Presented(bearer, byok=False)
    key = fields.get(b"x-api-key") or fields.get(b"api-key")
    return Presented(key, byok=False) if key else None


def _bearer(fields: dict[bytes, bytes]) -> bytes:
    value = fields.get(b"authorization", b"")
    return value[7:].strip(b" \t") if value[:7].lower() == b"bearer " else b""


NO_TOKEN: Final = Refusal(
    401,
    "no_token",
    "No Ostiary token was sent. Send one as the API key of your client (Authorization: Bearer or X-Api-Key), or as "
    "X-Ostiary-Token beside your own provider key. `ostiary tokens create` makes one.",
)

_TOKEN_REFUSALS: Final = {
    TokenRefusal.UNKNOWN: Refusal(
        401,
        "unknown_token",
        "The token is not one of this Ostiary. Check that the client sends an Ostiary token (ost_...), not a provider's key.",
    ),
    TokenRefusal.EXPIRED: Refusal(
        401, "expired_token", "The Ostiary token has expired. Make a new one with `ostiary tokens create`."
    ),
    TokenRefusal.REVOKED: Refusal(
        401, "revoked_token", "The Ostiary token was revoked. Make a new one with `ostiary tokens create`."
    ),
    TokenRefusal.SUSPENDED: Refusal(
        403,
        "suspended_user",
        "The user of this Ostiary token is suspended. An Ostiary admin can activate the user again.",
    ),
    TokenRefusal.DELETED: Refusal(
        403,
        "deleted_user",
        "The user of this Ostiary token was deleted. Ask an Ostiary admin for a new user and token.",
    ),
}


def identified(answer: Answer) -> Identity | Refusal:
    """Whether the holder of a token may pass."""
    if isinstance(answer, Identity):
        return answer
    if isinstance(answer, Unavailable):
        return Refusal(503, "control_plane_unreachable", f"The token cannot be checked: {answer.reason}. Try again.", 2)
    return _TOKEN_REFUSALS[answer]


class Admission:
    """Where a path leads in one snapshot, with what is the same for every request to it."""

    __slots__ = ("head_tail", "model", "provider", "route", "upstream_path")

    def __init__(self, provider: RuntimeProvider, route: Route, rest: bytes) -> None:
        self.provider = provider
        self.route = route
        self.upstream_path = provider.upstream_path(rest)
        self.model = provider.model_of(rest)
        """What the path itself names; empty for most."""
        self.head_tail = b" HTTP/1.1\r\n" + provider.host_line
        """Of the upstream request line, and the `Host` line."""


def locate(snapshot: Snapshot | None, target: Target) -> Admission | Refusal:
    """The provider and route of a path, or why there is none."""
    if snapshot is None:
        return Refusal(503, "no_snapshot", "This gateway has not loaded its providers yet. Try again.", 1)
    provider = snapshot.providers.get(target.provider)
    if provider is None:
        known = ", ".join(sorted(snapshot.providers)) or "none"
        return Refusal(404, "unknown_provider", f"There is no provider {target.provider!r}. Configured are: {known}.")
    if provider.error:
        return Refusal(503, "provider_error", f"The provider {provider.name!r} is misconfigured: {provider.error}.")
    if not provider.enabled:
        return Refusal(503, "provider_disabled", f"The provider {provider.name!r} is disabled. An admin can enable it.")
    problem = path_problem(target.rest)
    if problem is not None:
        return Refusal(400, "bad_path", f"The request's path is not passed on: {problem}.")
    route = provider.routes.match(target.rest)
    if route is None:
        names = ", ".join(provider.routes.names)
        path = target.rest.decode("ascii", "replace") or "/"
        return Refusal(
            404, "unknown_route", f"The provider {provider.name!r} has no route {path!r}. There are: {names}."
        )
    return Admission(provider, route, target.rest)


HTTP_1_0: Final = Refusal(505, "http_1_0", "Provider routes need HTTP/1.1.")
BODY_MEMORY: Final = Refusal(
    503, "body_memory", "The gateway's memory for request bodies is used up. Try again.", retry_after=1
)
BODY_TOO_SLOW: Final = Refusal(
    408, "body_rate", f"The request body came too slowly: less than {BODY_RATE} bytes a second on average."
)
NOT_RECORDED: Final = Refusal(500, "journal", "The request could not be recorded, so it was not sent. Try again later.")
_BYOK_OFF: Final = Refusal(403, "byok_off", "Bringing your own key is turned off on this gateway (allow_byok).")


def admit(admission: Admission, method: bytes, *, byok: bool, allow_byok: bool) -> Refusal | None:
    """Whether this request may go where its path leads. A provider that people bring their own token to anyway has no
    other way of being used: `allow_byok` does not concern it."""
    if method != b"POST" and admission.route.kind == "bridged":
        return Refusal(405, "bad_method", f"{admission.route.label} takes POST only.", allow="POST")
    return _BYOK_OFF if byok and not allow_byok and not admission.provider.brings_own else None


def body_too_large(limit: int) -> Refusal:
    """`limit`: bytes."""
    size = f"{limit // 1024**2} MiB" if limit % 1024**2 == 0 else f"{limit:,} bytes"
    return Refusal(413, "body_too_large", f"The request body is larger than {size} (body_max_bytes).")


def bad_request(error: Exception) -> Refusal:
    """For a body or header that cannot be read."""
    if isinstance(error, AdapterError):
        return Refusal(error.status, "not_supported", str(error))
    if isinstance(error, DecodedTooLongError):
        return Refusal(413, "body_too_large", str(error))
    if isinstance(error, UnsupportedCodingError):
        return Refusal(415, "unknown_coding", str(error))
    return Refusal(400, "bad_request", str(error))


def check(facts: RequestFacts, route: Route) -> Refusal | None:
    """Whether what the body says can be served."""
    if facts.background:
        return _BACKGROUND
    if not facts.model and not route.model_optional:
        wanted = f'The request body of {route.label} has no "model", or one that is not text; name the model to use.'
        return Refusal(400, "bad_request", wanted)
    return None


_BACKGROUND: Final = Refusal(
    501,
    "background",
    "Background responses cannot be recorded, so they are not served. Leave out `background` or set it to false.",
)


class Credential(Struct, frozen=True):
    """A credential of the client's own, that is among the request's fields: `hint` is it masked."""

    hint: str


_NO_OWN_CREDENTIAL: Final = Refusal(
    401,
    "no_own_credential",
    "X-Ostiary-Token was sent, so your own provider credential is expected too: add it as Authorization or X-Api-Key, "
    "or send the Ostiary token as the API key to use the gateway's keys.",
)
_NO_OWN_TOKEN: Final = Refusal(
    401,
    "no_own_credential",
    "This provider has no keys of the gateway's: everybody brings a token of their own. Send it as Authorization: "
    "Bearer, and the Ostiary token as X-Ostiary-Token.",
)


_TOKEN_PREFIX: Final = b"ost_"


def misplaced_tokens(fields: dict[bytes, bytes], token: bytes) -> frozenset[bytes]:
    """Credential fields that hold an Ostiary token. No provider may see one, but some clients send it in every place."""
    found = []
    for name in CREDENTIALS:
        value = fields.get(name)
        if value is not None and (token in value or value.rpartition(b" ")[2].startswith(_TOKEN_PREFIX)):
            found.append(name)
    return frozenset(found)


def own_credential(
    provider: RuntimeProvider, fields: dict[bytes, bytes], misplaced: frozenset[bytes] = frozenset()
) -> Credential | Refusal:
    """The client's own credential for this provider (reference D.3); it goes upstream untouched."""
    if misplaced:
        fields = {name: value for name, value in fields.items() if name not in misplaced}
    own = (fields.get(b"x-api-key", b"") if provider.family == "anthropic" else b"") or _bearer(fields)
    if not own:
        own = fields.get(b"api-key", b"") if provider.family == "openai" else b""
    if not own:
        return _NO_OWN_TOKEN if provider.brings_own else _NO_OWN_CREDENTIAL
    return Credential(mask(own.decode("latin-1")))


def no_key(provider: RuntimeProvider) -> Refusal:
    """A pool without a key."""
    return Refusal(
        502,
        "no_key",
        f"The provider {provider.name!r} has no API key. An admin can add one with `ostiary providers edit`, or send "
        "your own beside X-Ostiary-Token.",
    )


def pool_exhausted(provider: RuntimeProvider, exhausted: Exhausted) -> Refusal:
    """No key of the pool may be used now (reference D.13)."""
    look = f"`ostiary providers keys {provider.name}` tells more to an admin"
    if exhausted.kind == "rate_limited":
        wait = exhausted.retry_after
        return Refusal(
            429,
            "keys_rate_limited",
            f"All keys of the provider {provider.name!r} have reached their limits. Try again in {wait} s; {look}.",
            retry_after=wait,
        )
    return Refusal(
        502,
        "keys_refused",
        f"The provider {provider.name!r} accepts none of its keys at present. Ask an Ostiary admin; {look}.",
    )


def breaker_open(provider: RuntimeProvider, breaker: BreakerSubject, retry_after: int) -> Refusal:
    """The upstream has failed too often lately (reference D.14)."""
    model = f" for the model {breaker.model!r}" if breaker.model else ""
    what = f"{breaker.route} of the provider {provider.name!r}{model}"
    return Refusal(
        503,
        "breaker_open",
        f"The circuit breaker is open: {what} has failed several times in a row. Try again in {retry_after} s.",
        retry_after=retry_after,
        overloaded=provider.adapter is None,
    )


def exhausted(provider: RuntimeProvider, detail: str) -> Refusal:
    """For want of a descriptor, say. The provider is not to blame."""
    return Refusal(
        503,
        "exhausted",
        f"This gateway is at its limit and has no connection left to the provider {provider.name!r}: {detail}. "
        "Try again in a moment; `ostiary doctor` tells what to raise.",
        retry_after=1,
    )
