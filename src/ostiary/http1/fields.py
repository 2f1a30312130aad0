"""Which header fields are sent on, and the cutting of outgoing heads from the lines of incoming ones. Pure.

`REQUEST_RULES` and `RESPONSE_RULES` are the table (design §6, reference D.12): a field that stands in none of them goes on
as it came, in its place and spelling. Everything that is looked at for each request is made from them at import, and
docs/headers.md too. Names are lower case; one that ends in * stands for all that begin so.

Nothing is added that the client did not send, but for what each outgoing head is made of: no User-Agent either.
"""

from typing import Final, Literal, NamedTuple

from .head import Head, RequestHead, ResponseHead

When = Literal["always", "provider", "gateway_key", "rewritten"]
"""always       dropped, whoever is next
provider     dropped between client and provider; what is relayed to or from the control plane keeps it
gateway_key  the same, and only where the gateway's credential is used, not the person's own
rewritten    written anew for each upstream request"""

ACTOR_PREFIX: Final = b"x-ai-bridge-actor"


class Rule(NamedTuple):
    names: str
    when: When
    why: str
    """As the end of a sentence that begins with the field."""


_CONNECTION_RULES: Final = (
    Rule(
        "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer upgrade http2-settings",
        "always",
        "is about one connection (RFC 9110 §7.6.1), as is whatever Connection names",
    ),
)

REQUEST_RULES: Final = (
    *_CONNECTION_RULES,
    Rule(
        "forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-port x-real-ip via",
        "always",
        "tells of the way to this gateway",
    ),
    Rule("x-ostiary-front-door", "always", "is by what the control plane knows this machine's own front door"),
    Rule("host expect", "rewritten", "is agreed on with each next server"),
    Rule("content-length transfer-encoding", "rewritten", "is the framing of the body"),
    Rule("accept-encoding", "rewritten", "is narrowed to the codings that can be recorded"),
    Rule("x-ostiary-* x-coder-* coder-session-token", "provider", "is said to the gateway"),
    Rule("x-ai-bridge-actor*", "provider", "says who makes a call, which only the gateway may"),
    Rule(
        "anthropic-workspace-id",
        "provider",
        "chooses who pays within the provider's account, which is not the client's to say",
    ),
    Rule("authorization x-api-key api-key cookie", "gateway_key", "holds a credential"),
)

RESPONSE_RULES: Final = (
    *_CONNECTION_RULES,
    Rule("alt-svc strict-transport-security", "provider", "is about the provider's address, not about this one"),
    Rule(
        "x-ostiary-interception-id x-ostiary-request-id",
        "provider",
        "names a record; a provider that is an Ostiary too has others",
    ),
    Rule("set-cookie", "gateway_key", "belongs to the account of the key"),
)

_OTHER_USES: Final = (
    Rule("user-agent accept content-* set-cookie date", "always", "has a meaning of its own in HTTP"),
    Rule("anthropic-* x-amz-*", "always", "means something to providers"),
)
"""Besides, of the names that an operator cannot give to a header of the gateway's."""


def _names(rules: tuple[Rule, ...], *when: When) -> frozenset[bytes]:
    return frozenset(
        name.encode("ascii")
        for rule in rules
        if rule.when in when
        for name in rule.names.split()
        if not name.endswith("*")
    )


def _prefixes(rules: tuple[Rule, ...], *when: When) -> tuple[bytes, ...]:
    return tuple(
        name[:-1].encode("ascii")
        for rule in rules
        if rule.when in when
        for name in rule.names.split()
        if name.endswith("*")
    )


HOP_BY_HOP: Final = _names(_CONNECTION_RULES, "always")
"""Besides what `Connection` names. `Transfer-Encoding` is the engine's: it stays with verbatim framing."""

OURS: Final = frozenset(
    (
        b"x-ostiary-token",
        b"x-ostiary-timing",
        b"x-ostiary-front-door",
        b"x-ostiary-gateway-key",
        b"x-coder-ai-governance-token",
        b"x-coder-ai-governance-request-id",
        b"x-coder-agent-firewall-session-id",
        b"x-coder-agent-firewall-sequence-number",
        b"coder-session-token",
    )
)
"""Those that are said to the gateway and that it, or another of the kind, reads."""

_BODY_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))

_CONNECTION_ONLY: Final = _BODY_FRAMING | {b"close", b"keep-alive"}
"""Options of `Connection` that drop no field: without its framing a body would be read as the next message."""

REQUEST_DROPPED: Final = _names(REQUEST_RULES, "always", "provider", "rewritten") | OURS
"""Never sent to a provider as it came; `REQUEST_PREFIXES` neither."""

REQUEST_PREFIXES: Final = _prefixes(REQUEST_RULES, "provider")

CREDENTIALS: Final = _names(REQUEST_RULES, "gateway_key")
"""Not sent beside the gateway's own credential: they hold an Ostiary token or belong to another origin."""

FRONT_DOOR_DROPPED: Final = _names(REQUEST_RULES, "always") | {b"host", b"expect", b"x-request-id"}
"""Of a request to the control plane, which keeps its framing and its codings."""

RESPONSE_DROPPED: Final = HOP_BY_HOP | {b"alt-svc", b"strict-transport-security"}
"""Of an answer of a provider that is not recorded."""

RESPONSE_DROPPED_BYOK: Final = _names(RESPONSE_RULES, "always", "provider")
RESPONSE_DROPPED_CENTRALIZED: Final = RESPONSE_DROPPED_BYOK | _names(RESPONSE_RULES, "gateway_key")


def reserved_for(name: bytes) -> str:
    """Why a header of the gateway's cannot have this name, as the end of a sentence; empty when it can."""
    for rule in (*REQUEST_RULES, *_OTHER_USES):
        for pattern in rule.names.encode("ascii").split():
            if name == pattern or (pattern.endswith(b"*") and name.startswith(pattern[:-1])):
                return rule.why
    return ""


class Kept(dict[bytes, bool]):
    """Whether a field is sent on, by its name. Remembered, for names recur; bounded, for anybody can make some up."""

    _MAX: Final = 2048
    _LONGEST: Final = 128

    def __init__(self, dropped: frozenset[bytes], prefixes: tuple[bytes, ...] = ()) -> None:
        super().__init__()
        self._dropped = dropped
        self._prefixes = prefixes

    def __missing__(self, name: bytes) -> bool:
        kept = name not in self._dropped and not name.startswith(self._prefixes)
        if len(name) <= self._LONGEST:
            if len(self) >= self._MAX:
                self.clear()
            self[name] = kept
        return kept


_USUAL_CONNECTION: Final = (None, b"keep-alive", b"close")


def kept_lines(head: Head, kept: Kept, besides: frozenset[bytes] = frozenset()) -> list[bytes]:
    """The lines of `head` to send on, as they came; those of `besides` are not."""
    if head.fields.get(b"connection") not in _USUAL_CONNECTION:
        besides = besides.union(_connection_options(head))
    names = head.names
    return [line for at, line in enumerate(head.lines) if kept[names[at]] and names[at] not in besides]


def kept_request_lines(head: RequestHead, dropped: frozenset[bytes]) -> list[bytes]:
    """The lines of `head` to send on, as they came."""
    return _kept(head, dropped)


def kept_response_lines(head: ResponseHead, dropped: frozenset[bytes]) -> list[bytes]:
    """The lines of `head` to send on, as they came."""
    return _kept(head, dropped)


def _kept(head: Head, dropped: frozenset[bytes]) -> list[bytes]:
    if head.fields.get(b"connection") not in _USUAL_CONNECTION:
        dropped = dropped.union(_connection_options(head))
    names = head.names
    return [line for at, line in enumerate(head.lines) if names[at] not in dropped]


def _connection_options(head: Head) -> frozenset[bytes]:
    """The fields that `Connection` names."""
    return frozenset(head.connection_options()) - _CONNECTION_ONLY
