"""Which reader reads what: by the route's format for requests, by the answer's own content type for answers.

An answer is read as what it says it is: a provider may answer a streaming request with a JSON error, or a blocking one with a
stream.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from . import anthropic_messages, metered, openai_chat, openai_responses
from .content_coding import MAX_RESPONSE, UnsupportedCodingError, decoder_for
from .facts import Content, Format, RequestFacts, ResponseFacts
from .observer import (
    UNBOUNDED,
    AnswerMemory,
    BlindObserver,
    BodyObserver,
    Observer,
    StreamObserver,
    StreamReader,
)


class _Readers(NamedTuple):
    request: Callable[[bytes, Content], RequestFacts]
    body: Callable[[bytes, Content], ResponseFacts]
    stream: Callable[[Content], StreamReader]


_READERS: Final[dict[Format, _Readers]] = {
    "chat_completions": _Readers(openai_chat.read_request, openai_chat.read_body, openai_chat.StreamReader),
    "responses": _Readers(openai_responses.read_request, openai_responses.read_body, openai_responses.StreamReader),
    "messages": _Readers(
        anthropic_messages.read_request, anthropic_messages.read_body, anthropic_messages.StreamReader
    ),
}


_REQUESTS: Final = {"metered": metered.read_request} | {name: readers.request for name, readers in _READERS.items()}
_BODIES: Final = {"metered": metered.read_body} | {name: readers.body for name, readers in _READERS.items()}


_USUAL_TYPES: Final = frozenset((b"application/json", b"text/event-stream"))


def read_request(format: Format, body: bytes, content: Content = "prompts") -> RequestFacts:  # noqa: A002 - its name
    """What a request body says, without content coding. Raises `facts.RequestError`."""
    return _REQUESTS[format](body, content)


def read_body(format: Format, body: bytes, content: Content = "prompts") -> ResponseFacts:  # noqa: A002 - its name
    """What a whole JSON answer or error body says. Raises `ValueError` when it is nested too deeply."""
    return _BODIES[format](body, content)


def observer_for(
    format: Format,  # noqa: A002 - its name
    content_type: bytes,
    content: Content = "prompts",
    content_encoding: bytes = b"",
    memory: AnswerMemory = UNBOUNDED,
) -> Observer | None:
    """The observer for an answer with these header fields; None when it is of a kind that holds no facts.

    What it has to hold counts against `memory`, until its `finish`.
    """
    media_type = content_type
    if media_type not in _USUAL_TYPES:
        media_type = content_type.partition(b";")[0].strip().lower()
    is_stream = media_type == b"text/event-stream"
    if not is_stream and media_type != b"application/json" and not media_type.endswith(b"+json"):
        return None
    try:
        decoder = decoder_for(content_encoding, MAX_RESPONSE) if content_encoding else None
    except UnsupportedCodingError as exc:
        return BlindObserver(str(exc))
    if format == "metered":
        return metered.observer(is_stream=is_stream, decoder=decoder)
    readers = _READERS[format]
    if is_stream:
        return StreamObserver(readers.stream(content), decoder, memory)
    return BodyObserver(lambda body: readers.body(body, content), decoder, memory)
