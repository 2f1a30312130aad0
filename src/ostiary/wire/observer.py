"""Observers: they get a copy of an answer's bytes and give its facts at the end.

Rules for the relay
- `feed(data)` for every piece of the body, without transfer framing, with content coding. It is the append of a list and
  does nothing else: it cannot fail and costs what a call costs.
- `compact()` whenever 32 KiB (`COMPACT_EVERY`) have been fed since the last time: what came is read and let go. An observer
  of a stream then holds no more than 64 KiB besides the facts and an event that is under way.
- `finish()` once, however the answer ended. Nothing here raises: what fails is told by `unparsed` and `problem`.
- What has to be held until it is whole (a blocking answer, a long event) takes of `AnswerMemory`, which all observers of a
  worker share. An answer for which there is none left flows like any other, and is not read.
"""

from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from .content_coding import CodingError, Decoder
from .events import is_whole
from .facts import ResponseFacts
from .sse import normalise

COMPACT_EVERY: Final = 32 * 1024
MAX_HELD: Final = 64 * 1024
"""An event that grows beyond this is dropped on the way, unless it may carry facts."""
MAX_EVENT: Final = 32 * 1024 * 1024
MAX_BODY: Final = 64 * 1024 * 1024
"""Of a blocking answer, decoded. What is longer flows, but is not read."""
_TOO_LONG: Final = f"the answer is longer than {MAX_BODY} bytes"
NO_MEMORY: Final = "the gateway's memory for answers is used up (body_memory_max)"
_UNLIMITED: Final = 1 << 62


class AnswerMemory:
    """How many bytes observers hold together. What is too little to be compacted is not counted."""

    __slots__ = ("held", "most", "refusals")

    def __init__(self, most: int = _UNLIMITED) -> None:
        self.held = 0
        self.most = most
        self.refusals = 0
        """Answers that were not read for want of it."""

    def reserve(self, size: int) -> bool:
        """Take `size` bytes, to be released; False, and nothing is taken, when there are not so many left."""
        held = self.held + size
        if held > self.most:
            self.refusals += 1
            return False
        self.held = held
        return True

    def release(self, size: int) -> None:
        self.held -= size


UNBOUNDED: Final = AnswerMemory()
"""For answers that are at hand anyway."""


class Observer(Protocol):
    """What the relay tells of an answer."""

    feed: Callable[[bytes], None]

    def compact(self) -> None: ...

    def finish(self) -> ResponseFacts: ...


class StreamReader(Protocol):
    """Reads the events of one format."""

    noise: tuple[bytes, ...]
    """Type names of events that can be long and carry no fact."""

    def read(self, block: bytes) -> None:
        """Take whole events, with LF line ends."""

    def facts(self) -> ResponseFacts:
        """What was read so far. Called once, at the end."""


class StreamObserver:
    """Of a `text/event-stream`."""

    __slots__ = (
        "_decoder",
        "_held",
        "_memory",
        "_problem",
        "_reader",
        "_reserved",
        "_skipping",
        "_split_crlf",
        "_stopped",
        "_under_way",
        "feed",
    )

    def __init__(self, reader: StreamReader, decoder: Decoder | None = None, memory: AnswerMemory = UNBOUNDED) -> None:
        self._reader = reader
        self._decoder = decoder
        self._memory = memory
        self._reserved = 0
        """For an event under way that is longer than `MAX_HELD`."""
        self._held: list[bytes] = []
        self._under_way: list[bytes] = []
        self._split_crlf = False
        self._skipping = False
        self._stopped = False
        self._problem = ""
        self.feed: Callable[[bytes], None] = self._held.append

    def compact(self) -> None:
        """Read the events that are whole, and let go of their bytes."""
        data = b"".join(self._held)
        self._held.clear()
        if not data or self._stopped:
            return
        try:
            if self._decoder is None:
                self._advance(data)
            else:
                for part in self._decoder.decode(data):
                    self._advance(part)
        except CodingError as broken:
            self._stop(str(broken))
        except Exception as exc:  # noqa: BLE001 - a mistake here must not reach the relay
            self._stop(f"{type(exc).__name__} while taking the stream apart")

    def finish(self) -> ResponseFacts:
        """The facts. An event without its blank line at the very end counts, if it is whole."""
        self.compact()
        rest = b"".join(self._under_way)
        self._let_go()
        if rest and not self._skipping and is_whole(rest):
            self._read(rest + b"\n\n")
        try:
            facts = self._reader.facts()
        except Exception as exc:  # noqa: BLE001 - a reader's mistake must not reach the relay
            return ResponseFacts(unparsed=True, problem=f"{type(exc).__name__} while gathering facts")
        if self._problem:
            facts = msgspec.structs.replace(facts, unparsed=True, problem=self._problem)
        return facts

    def _stop(self, problem: str) -> None:
        self._problem = problem
        self._stopped = True
        self._let_go()

    def _let_go(self) -> None:
        """Of the event under way."""
        self._under_way.clear()
        if self._reserved:
            self._memory.release(self._reserved)
            self._reserved = 0

    def _advance(self, data: bytes) -> None:
        if self._split_crlf:
            data = b"\r" + data
        if b"\r" in data:
            self._split_crlf = data.endswith(b"\r")
            data = normalise(data[:-1] if self._split_crlf else data)
        under_way = self._under_way
        cut = data.rfind(b"\n\n") + 2
        if cut == 1:
            cut = 1 if data.startswith(b"\n") and under_way and under_way[-1].endswith(b"\n") else 0
        if not cut:
            if data:
                under_way.append(data)
                self._bound_event()
            return
        whole = data[:cut] if cut < len(data) else data
        block = b"".join((*under_way, whole)) if under_way else whole
        self._let_go()
        if cut < len(data):
            under_way.append(data[cut:])
        if self._skipping:
            self._skipping = False
            block = block[block.find(b"\n\n") + 2 :]
        if block:
            self._read(block)
        if under_way:
            self._bound_event()

    def _read(self, block: bytes) -> None:
        try:
            self._reader.read(block)
        except Exception as exc:  # noqa: BLE001 - a reader's mistake must not reach the relay
            self._problem = f"{type(exc).__name__} while reading events"

    def _bound_event(self) -> None:
        """Let go of an event under way that is too long to be held."""
        under_way = self._under_way
        size = sum(map(len, under_way))
        if size <= MAX_HELD:
            return
        if not (self._skipping or self._is_noise()):
            if size > MAX_EVENT:
                self._problem = f"an event is longer than {MAX_EVENT} bytes"
            elif self._memory.reserve(size - self._reserved):
                self._reserved = size
                return
            else:
                self._problem = NO_MEMORY
        self._skipping = True
        # The last byte may be half of the blank line that ends the event.
        last = under_way[-1][-1:]
        self._let_go()
        under_way.append(last)

    def _is_noise(self) -> bool:
        head = b"".join(self._under_way[:2])[:512].lstrip(b"\n")
        # Within a string of the event these could not stand: its quotes are escaped.
        return any(
            head.startswith(b"event: " + name + b"\n") or b'"type":"' + name + b'"' in head
            for name in self._reader.noise
        )


class BodyObserver:
    """Of an `application/json` answer: held until it is whole."""

    __slots__ = ("_decoder", "_held", "_memory", "_parts", "_problem", "_read_body", "_size", "feed")

    def __init__(
        self,
        read_body: Callable[[bytes], ResponseFacts],
        decoder: Decoder | None = None,
        memory: AnswerMemory = UNBOUNDED,
    ) -> None:
        self._read_body = read_body
        self._decoder = decoder
        self._memory = memory
        self._held: list[bytes] = []
        self._parts: list[bytes] = []
        self._size = 0
        """Of the parts, and what is reserved for them."""
        self._problem = ""
        self.feed: Callable[[bytes], None] = self._held.append

    def compact(self) -> None:
        """Join what came; let go of everything once it is too long to be read, or there is no memory for it."""
        data = b"".join(self._held)
        self._held.clear()
        if self._problem:
            return
        size = len(data)
        if self._size + size > MAX_BODY:
            self._give_up(_TOO_LONG)
        elif not self._memory.reserve(size):
            self._give_up(NO_MEMORY)
        else:
            self._size += size
            self._parts.append(data)

    def finish(self) -> ResponseFacts:
        """The facts of a whole body; only `unparsed` of anything else."""
        if not self._problem:
            body = b"".join((*self._parts, *self._held))
            self._let_go()
            if len(body) <= MAX_BODY:
                return self._read(body)
            self._problem = _TOO_LONG
        return ResponseFacts(unparsed=True, problem=self._problem)

    def _read(self, body: bytes) -> ResponseFacts:
        try:
            if self._decoder is not None:
                body = b"".join(self._decoder.decode(body))
            return self._read_body(body)
        except CodingError as broken:
            self._problem = str(broken)
        except Exception as exc:  # noqa: BLE001 - a reader's mistake must not reach the relay
            self._problem = f"{type(exc).__name__} while reading the answer"
        return ResponseFacts(unparsed=True, problem=self._problem)

    def _give_up(self, problem: str) -> None:
        self._problem = problem
        self._let_go()

    def _let_go(self) -> None:
        self._parts.clear()
        self._held.clear()
        self._memory.release(self._size)
        self._size = 0


class BlindObserver:
    """Of an answer that cannot be read, e.g. in an unknown content coding: its bytes flow, its facts are missing."""

    __slots__ = ("_problem", "feed")

    def __init__(self, problem: str) -> None:
        self._problem = problem
        self.feed: Callable[[bytes], None] = _ignore

    def compact(self) -> None:
        """Nothing is held."""

    def finish(self) -> ResponseFacts:
        return ResponseFacts(unparsed=True, problem=self._problem)


def _ignore(_data: bytes) -> None:
    pass
