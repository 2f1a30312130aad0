"""The heads that go out: to the upstream, and to the client. Pure; joined from the lines that came in (design §6)."""

from typing import Final

from ostiary.core.secret import mask
from ostiary.http1.fields import (
    CREDENTIALS,
    REQUEST_DROPPED,
    RESPONSE_DROPPED,
    kept_request_lines,
    kept_response_lines,
)
from ostiary.http1.head import NO_BODY, RequestHead, ResponseHead
from ostiary.wire.content_coding import narrow_accept_encoding

from .decide import Admission
from .providers import RuntimeKey
from .providers.adapter import Prepared

_DROPPED_CENTRALIZED: Final = REQUEST_DROPPED | CREDENTIALS | {b"accept-encoding"}
_DROPPED_BYOK: Final = REQUEST_DROPPED | {b"accept-encoding"}
_OWN_IDS: Final = frozenset((b"x-ostiary-interception-id", b"x-ostiary-request-id"))
"""An upstream may be an Ostiary too: the client is told of its record here, not of the one there."""
_RESPONSE_BYOK: Final = RESPONSE_DROPPED | _OWN_IDS
_RESPONSE_CENTRALIZED: Final = _RESPONSE_BYOK | {b"set-cookie"}
_LENGTH_FIELDS: Final = frozenset((b"content-length", b"transfer-encoding"))
_CONTENT_TYPE: Final = frozenset((b"content-type",))
_CODING: Final = frozenset((b"content-encoding",))
_SHORTEST_SECRET: Final = 8
"""Characters; what is shorter in a credential is the name of its scheme."""
_WITH_BODY: Final = frozenset((b"POST", b"PUT", b"PATCH"))


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
) -> bytes:
    """The head of the request that goes upstream. `body_length` None: in chunks.

    `own`: the client's own credential stays, but for what is in `misplaced` (fields with an Ostiary token).
    `reads_plain`: the body is sent and the answer wanted without content coding; else the client's `Accept-Encoding`
    goes on, narrowed to what we read. `lines_of_ours`: each with its CRLF.
    """
    dropped = _DROPPED_BYOK | misplaced if own else _DROPPED_CENTRALIZED
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
    lines = kept_request_lines(head, dropped)
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
    dropped = _RESPONSE_BYOK if byok else _RESPONSE_CENTRALIZED
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
