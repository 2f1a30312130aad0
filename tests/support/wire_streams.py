"""Streams as providers send them, ways to disturb them, and what an observer makes of them."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from ostiary.wire.facts import Content, Format, ResponseFacts
from ostiary.wire.formats import observer_for

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "fixtures"
SSE = b"text/event-stream; charset=utf-8"
JSON = b"application/json"

Json = dict[str, Any]


class Recording(NamedTuple):
    name: str
    format: Format
    section: str
    body: bytes
    """Without the head of a raw HTTP answer."""
    status: int

    @property
    def content_type(self) -> bytes:
        return SSE if self.section.startswith("streaming") and self.status == 200 else JSON


def recordings() -> Iterator[Recording]:
    for path in sorted(RECORDINGS.rglob("*.txtar")):
        name = path.relative_to(RECORDINGS).as_posix()
        format_: Format = (
            "messages" if "anthropic" in name else "chat_completions" if "chatcompletions" in name else "responses"
        )
        parts = re.split(rb"(?m)^-- (.+?) --\n", path.read_bytes())
        for section, body in zip(parts[1::2], parts[2::2], strict=True):
            status = 200
            if body.startswith(b"HTTP/"):
                head, _, body = body.partition(b"\n\n")
                status = int(head.split()[1])
            yield Recording(name, format_, section.decode(), body, status)


def sse(events: Sequence[tuple[str, Json] | Json | str], *, spaced: bool = False) -> bytes:
    """(name, data) pairs, data alone, or raw text such as a comment."""
    separators = (", ", ": ") if spaced else (",", ":")
    out = []
    for event in events:
        if isinstance(event, str):
            out.append(event)
            continue
        name, data = event if isinstance(event, tuple) else ("", event)
        head = f"event: {name}\n" if name else ""
        out.append(f"{head}data: {json.dumps(data, separators=separators)}\n\n")
    return "".join(out).encode()


def observe(
    format_: Format,
    stream: bytes,
    *,
    content: Content = "prompts",
    content_type: bytes = SSE,
    encoding: bytes = b"",
    cuts: Sequence[int] = (),
    compact_at: Sequence[int] = (),
) -> ResponseFacts:
    """Feed a body in pieces cut at `cuts`, compacting behind the pieces that `compact_at` counts."""
    observer = observer_for(format_, content_type, content, encoding)
    assert observer is not None
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for count, (begin, end) in enumerate(pairwise(bounds)):
        observer.feed(stream[begin:end])
        if count in compact_at:
            observer.compact()
    return observer.finish()


def torn_everywhere(stream: bytes) -> range:
    return range(1, len(stream))


DISTURBANCES: dict[str, Callable[[bytes], bytes]] = {
    "crlf": lambda stream: stream.replace(b"\n", b"\r\n"),
    "cr": lambda stream: stream.replace(b"\n", b"\r"),
    "no space after data": lambda stream: stream.replace(b"data: ", b"data:"),
    "comments between events": lambda stream: stream.replace(b"\n\n", b"\n\n: keep-alive\n\n"),
    "comment lines within events": lambda stream: stream.replace(b"\ndata:", b"\n: note\ndata:"),
    "ids and retries": lambda stream: stream.replace(b"\n\n", b"\nid: 7\nretry: 10\n\n"),
    "byte order mark": lambda stream: b"\xef\xbb\xbf" + stream,
    "blank lines": lambda stream: stream.replace(b"\n\n", b"\n\n\n\n"),
    "unknown events": lambda stream: stream.replace(b"\n\n", b'\n\nevent: news\ndata: {"type":"news","x":[1]}\n\n'),
    "events without data": lambda stream: stream.replace(b"\n\n", b"\n\nevent: nothing\n\n"),
    "no blank line at the end": lambda stream: stream.rstrip(b"\n"),
    "several data lines": lambda stream: stream.replace(b'data: {"', b'data: {\ndata: "'),
}
"""Each leaves the facts as they are."""

WORDS = st.text(
    st.sampled_from("ab {}[]\\\"'\n\t,:é😀\u2028/") | st.characters(exclude_categories=("Cs",)), max_size=30
)
"""Text that is awkward in JSON, in SSE or in both."""


@st.composite
def pieces_of(draw: st.DrawFn, texts: st.SearchStrategy[str] = WORDS) -> tuple[str, list[str]]:
    """A text and the deltas that it comes in."""
    deltas = draw(st.lists(texts, max_size=6))
    return "".join(deltas), deltas
