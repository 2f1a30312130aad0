"""What the request readers share: one typed pass over the body, and the text of its last turn.

Rules
- A request is refused only when it cannot be read: empty, not JSON, not an object. Whether it may be without a string
  `model`, which is empty then, others know.
- Earlier turns are passed over undecoded: an agent's body holds its whole history, and only the end of it is new.
- Instructions are no turn. Some clients put one behind the user's turn, of the role `system` or `developer`, Claude Code from
  2.1.154 on among them: platform.claude.com/docs/en/build-with-claude/mid-conversation-system-messages.
"""

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from msgspec import Raw

from .facts import RequestError
from .lenient import JsonText, LenientDecoder, NestingError
from .request_shapes import Contents, Message, PartList, Request

R = TypeVar("R", bound=Request)

_messages: Final = LenientDecoder(Message)
_contents: Final = LenientDecoder(Contents)

_INSTRUCTIONS: Final = frozenset(("system", "developer"))

_CURE: Final = 'send a JSON object with a "model"'


def decode_object(decoder: LenientDecoder[R], body: bytes) -> R:
    """The body in the decoder's struct, whose `model` may be empty. Raises `RequestError`."""
    try:
        request = decoder.decode(body)
    except NestingError as exc:
        raise RequestError("the request body is nested too deeply; send a flatter one") from exc
    if request is None:
        if not body.strip():
            raise RequestError(f"the request body is empty; {_CURE}")
        if body.lstrip()[:1] in (b"[", b'"') or body.strip() in (b"null", b"true", b"false"):
            raise RequestError(f"the request body is not a JSON object; {_CURE}")
        raise RequestError(f"the request body is not JSON; {_CURE}")
    return request


def message(raw: JsonText) -> Message | None:
    """One message, or None when it is not an object."""
    try:
        return _messages.decode(bytes(raw))
    except NestingError:
        return None


def backwards(messages: Sequence[Raw]) -> Iterator[Message]:
    """The messages from the last one on, decoded one by one. Stops at what is no object."""
    for raw in reversed(messages):
        found = message(raw)
        if found is None:
            return
        yield found


def last_turn(messages: Sequence[Raw]) -> Message | None:
    """The last message, but for instructions behind it. None where there is none, or the last one is no object."""
    for found in backwards(messages):
        if found.role not in _INSTRUCTIONS:
            return found
    return None


def last_text(content: PartList, kind: str = "text") -> str | None:
    """A content string, or its last part of a type. None when there is none, or it is empty."""
    if isinstance(content, str):
        return content or None
    for part in reversed(content or ()):
        if part.type == kind and part.text:
            return part.text
    return None


def texts(content: PartList, *kinds: str) -> list[str]:
    """A content string, or the texts of its parts of some types."""
    if isinstance(content, str):
        return [content] if content else []
    return [part.text for part in content or () if part.type in kinds and part.text]


def joined_text(raw: Raw, *kinds: str) -> str:
    """The text of a tool result: a JSON string, or parts whose texts are joined by newlines."""
    return "\n".join(raw_texts(raw, *kinds))


def raw_texts(raw: Raw, *kinds: str) -> list[str]:
    """`texts` of what has not been decoded; of a member that is absent none."""
    if not raw:
        return []
    try:
        held = _contents.decode(b'{"content":' + bytes(raw) + b"}")
    except NestingError:
        return []
    return [] if held is None else texts(held.content, *kinds)
