"""The heads that go out: to the upstream, and to the client. Pure; joined from the lines that came in (design §6)."""

from typing import Final
from urllib.parse import quote

from ostiary.core.identity import Identity
from ostiary.core.secret import mask
from ostiary.core.settings import GatewaySettings
from ostiary.http1.fields import (
    CREDENTIALS,
    REQUEST_DROPPED,
    REQUEST_PREFIXES,
    RESPONSE_DROPPED_BYOK,
    RESPONSE_DROPPED_CENTRALIZED,
    Kept,
    kept_lines,
    kept_response_lines,
)
from ostiary.http1.head import NO_BODY, RequestHead, ResponseHead
from ostiary.wire.content_coding import narrow_accept_encoding

from .decide import Admission
from .providers import RuntimeKey
from .providers.adapter import Prepared

_LENGTH_FIELDS: Final = frozenset((b"content-length", b"transfer-encoding"))
_CONTENT_TYPE: Final = frozenset((b"content-type",))
_CODING: Final = frozenset((b"content-encoding",))
_SHORTEST_SECRET: Final = 8
"""Characters; what is shorter in a credential is the name of its scheme."""
_WITH_BODY: Final = frozenset((b"POST", b"PUT", b"PATCH"))
_NOTHING: Final[frozenset[bytes]] = frozenset()
_ACTOR_PLAIN: Final = "!#$&'()*+,/:;<=>?@[]^`{|}\"\\"
"""Visible ASCII that stays as it is in an actor header, besides letters, digits and _.-~; a percent sign does not."""


class ActorHeaders:
    """What providers are told of the person behind a call (reference D.12), and which client lines they get at all.

    What a client says under these names is dropped, also while nothing is sent. One for a worker.
    """

    __slots__ = ("_names", "kept_byok", "kept_centralized", "sent")

    def __init__(self, settings: GatewaySettings) -> None:
        self._names = tuple(
            name.encode("ascii")
            for name in (settings.actor_header_id, settings.actor_header_username, settings.actor_header_email)
        )
        dropped = REQUEST_DROPPED | {name.lower() for name in self._names if name}
        self.kept_byok = Kept(dropped, REQUEST_PREFIXES)
        self.kept_centralized = Kept(dropped | CREDENTIALS, REQUEST_PREFIXES)
        self.sent = settings.send_actor_headers and any(self._names)

    def lines(self, identity: Identity) -> bytes:
        """Each with its CRLF. What is not visible ASCII, and %, is percent-encoded UTF-8: no value can end its line."""
        values = (identity.owner_id, identity.username, identity.email)
        return b"".join(
            b"%b: %b\r\n" % (name, quote(value, safe=_ACTOR_PLAIN).encode("ascii"))
            for name, value in zip(self._names, values, strict=True)
            if name and value
        )


_UNTOLD: Final = ActorHeaders(GatewaySettings(journal_dir=""))


def upstream_head(
    head: RequestHead,
    admission: Admission,
    key: RuntimeKey | None,
    body_length: int | None,
    *,
    own: bool,
    misplaced: frozenset[bytes],
    reads_plain: bool,
    prepared: Prepared | None = None,
    lines_of_ours: bytes = b"",
    actor: ActorHeaders = _UNTOLD,
    identity: Identity | None = None,
) -> bytes:
    """The head of the request that goes upstream. `body_length` None: in chunks.

    `own`: the client's own credential stays, but for what is in `misplaced` (fields with an Ostiary token).
    `reads_plain`: the body is sent and the answer wanted without content coding; else the client's `Accept-Encoding`
    goes on, narrowed to what we read. `lines_of_ours`: each with its CRLF. `identity`: whom `actor` tells of, on bridged
    routes.
    """
    if own:
        kept, dropped = actor.kept_byok, misplaced
    else:
        kept, dropped = actor.kept_centralized, _NOTHING
    accepted = head.fields.get(b"accept-encoding")
    coding_line = b""
    provider = admission.provider
    if prepared is None:
        target = admission.upstream_path + provider.upstream_query(head.query)
    else:
        target = prepared.target
        dropped |= prepared.dropped | _CODING
        lines_of_ours = prepared.lines + lines_of_ours
        reads_plain = reads_plain or prepared.plain_answer
    if reads_plain:
        coding_line = b"Accept-Encoding: identity\r\n"
        dropped |= _CODING
    elif accepted is not None:
        coding_line = b"Accept-Encoding: " + narrow_accept_encoding(accepted) + b"\r\n"
    if actor.sent and identity is not None and admission.route.kind == "bridged":
        lines_of_ours = actor.lines(identity) + lines_of_ours
    lines = kept_lines(head, kept, dropped)
    lines.append(b"")
    if body_length is None:
        framing = b"Transfer-Encoding: chunked\r\n\r\n"
    elif body_length or head.framing != NO_BODY or head.method in _WITH_BODY:
        framing = b"Content-Length: %d\r\n\r\n" % body_length
    else:
        framing = b"\r\n"
    return b"".join(
        (
            head.method,
            b" ",
            target,
            admission.head_tail,
            b"\r\n".join(lines),
            b"" if key is None else key.line,
            coding_line,
            lines_of_ours,
            framing,
        )
    )


def without_credentials(text: str, sent: bytes) -> str:
    """What a provider said, without the credentials of the head it was sent: some quote the key that they refuse."""
    for line in sent.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() in CREDENTIALS:
            for part in value.decode("latin-1").split():
                if len(part) >= _SHORTEST_SECRET:
                    text = text.replace(part, mask(part))
    return text


def client_head(
    head: ResponseHead,
    id_line: bytes,
    *,
    byok: bool,
    rechunked: bool,
    keeps_client: bool,
    timing: bytes,
    content_type: bytes = b"",
) -> bytes:
    """The head of the answer to the client. `rechunked`: its body goes out in chunks of ours; `timing` may be empty.

    `content_type`: what the body is, where that is not what the upstream said.
    """
    dropped = RESPONSE_DROPPED_BYOK if byok else RESPONSE_DROPPED_CENTRALIZED
    if rechunked:
        dropped |= _LENGTH_FIELDS
    if content_type:
        dropped |= _CONTENT_TYPE
    lines = kept_response_lines(head, dropped)
    lines.insert(0, head.status_line if head.minor else b"HTTP/1.1 " + head.status_line[9:])
    lines.append(id_line)
    if content_type:
        lines.append(b"Content-Type: " + content_type)
    if rechunked:
        lines.append(b"Transfer-Encoding: chunked")
    if timing:
        lines.append(b"Server-Timing: " + timing)
    if not keeps_client:
        lines.append(b"Connection: close")
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def server_timing(stages: dict[str, int], since_ns: int) -> bytes:
    """Durations in ms of each stage, in order (W3C Server Timing)."""
    parts = []
    for name, at in stages.items():
        parts.append(f"{name};dur={(at - since_ns) / 1e6:.3f}")
        since_ns = at
    return ", ".join(parts).encode("ascii")
