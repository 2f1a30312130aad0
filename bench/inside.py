"""The stages of a call, one by one and all together, without a socket: `python -m bench.inside ORDER.json`.

Runs in an interpreter that takes `ostiary` from the build under test, and prints microseconds as JSON.

Rules
- The whole is the real thing: a worker with its journal on disk, a client connection that is fed the bytes of a request, an
  upstream connection that is fed the bytes of the fake provider's answer. Only the transports at both ends do nothing.
- A stage is the product's own function, called again and again with what it gets in such a call.
- They take turns: a whole call, then each stage of it once, and again. A function that is called again and again alone finds
  everything it needs in the nearest cache, and would seem up to three times as fast as it is in a call.
- Each turn is timed by itself and the median counts, so that what interrupts one turn does not count. What the clock itself
  takes is measured the same way and taken off.
- A stage that cannot be called any more leaves its reason and does not stop the others.
"""

import gc
import hashlib
import json
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from ostiary.core import agents
from ostiary.core.identity import Identity
from ostiary.core.ids import new_id
from ostiary.core.messages import Authorization
from ostiary.core.messages import Snapshot as SnapshotMessage
from ostiary.core.providers import ProviderKey, ProviderSpec
from ostiary.core.records import Attempt, Trace, encode_record
from ostiary.core.secret import Secret
from ostiary.core.settings import GatewaySettings
from ostiary.gateway import decide
from ostiary.gateway.heads import client_head, upstream_head
from ostiary.gateway.journal import Journal
from ostiary.gateway.recording import Ending, end_record, start_record
from ostiary.gateway.routes import Target, split_path
from ostiary.gateway.worker import Worker
from ostiary.http1.head import parse_request_head, parse_response_head
from ostiary.http1.pool import client_tls_context
from ostiary.http1.server import ClientConnection
from ostiary.http1.upstream import COMPACT_BYTES, UpstreamConnection
from ostiary.wire.formats import observer_for, read_request

WHOLE = "whole"
_NAMES = {"openai": "bench-openai", "anthropic": "bench-anthropic"}
_FORMATS = {"openai": "chat_completions", "anthropic": "messages"}


class Transport:
    """An end of a connection that takes everything and says nothing."""

    def __init__(self) -> None:
        self.taken = 0

    def write(self, data: bytes) -> None:
        self.taken += len(data)

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        for piece in pieces:
            self.taken += len(piece)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ARG002 - the transport's signature
        return default

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        raise RuntimeError("the connection was closed in the middle of the benchmark")

    abort = write_eof = close


class Scene:
    """A worker with one client connection and one upstream connection."""

    def __init__(self, folder: Path, kind: str, token: str, request: bytes, answer: bytes, pieces: list[bytes]) -> None:
        self.request = request
        self.answer = answer
        self.pieces = pieces
        settings = GatewaySettings(journal_dir=str(folder / "journal"), journal_max_bytes=64 * 1024**3)
        self.journal = Journal.open(Path(settings.journal_dir), settings, str(uuid.uuid4()), time.monotonic)
        self.worker = Worker(settings, self.journal, client_tls_context(), lambda _message: True)
        base = "http://127.0.0.1:9" + ("/v1" if kind == "openai" else "")
        key = ProviderKey(str(uuid.uuid4()), Secret("sk-bench-upstream"))
        spec = ProviderSpec(str(uuid.uuid4()), _NAMES[kind], kind, enabled=True, base_url=base, keys=(key,))
        self.worker.take_snapshot(SnapshotMessage(1, (spec,)))
        self.identity = Identity(str(uuid.uuid4()), str(uuid.uuid4()), "bench", "bench@example.com", "member")
        digest = hashlib.sha256(token.encode()).digest()
        self.worker.take_authorization(Authorization(digest, self.identity, ttl=1e9))
        self.client = ClientConnection(self.worker.connections)
        self.to_client = Transport()
        self.client.connection_made(self.to_client)  # type: ignore[arg-type]
        snapshot = self.worker.snapshot
        assert snapshot is not None
        provider = snapshot.providers[_NAMES[kind]]
        self.upstream = UpstreamConnection(self.worker.pool, provider.origin)
        self.to_upstream = Transport()
        self.upstream.connection_made(self.to_upstream)  # type: ignore[arg-type]
        self.worker.pool.release(self.upstream)
        self.key = provider.keys[0]

    def call(self) -> None:
        """One whole call."""
        self.client.data_received(self.request)
        take = self.upstream.data_received
        for piece in self.pieces:
            take(piece)

    def check(self) -> None:
        """That a call does what it should. Raises `RuntimeError`."""
        before = self.to_upstream.taken, self.to_client.taken, self.journal.seq
        self.call()
        sent = self.to_upstream.taken - before[0]
        told = self.to_client.taken - before[1]
        if sent < len(self.request) // 2 or told < len(self.answer) // 2 or self.journal.seq != before[2] + 2:
            raise RuntimeError(f"a call sent {sent} bytes, gave {told}, wrote {self.journal.seq - before[2]} records")


def stages(scene: Scene, wire_format: Any) -> dict[str, Callable[[], object]]:
    """Name → one stage of a call."""
    worker, identity = scene.worker, scene.identity
    end = scene.request.index(b"\r\n\r\n") + 4
    raw_head, body = scene.request[:end], scene.request[end:]
    head = parse_request_head(raw_head)
    fields = head.fields
    target = split_path(head.path, standalone=False)
    assert isinstance(target, Target)
    admission = worker.locate(head.path, target)
    assert isinstance(admission, decide.Admission)
    facts = read_request(wire_format, body, "prompts")
    answer_end = scene.answer.index(b"\r\n\r\n") + 4
    raw_answer_head = scene.answer[:answer_end]
    answer_head = parse_response_head(raw_answer_head)
    content_type = answer_head.fields[b"content-type"]
    payload = payload_pieces(scene, answer_end)
    client = agents.detect_client(fields)
    id_line = b"x-ostiary-interception-id: " + new_id().encode("ascii")
    model, hint = facts.model, scene.key.hint

    def authorise() -> None:
        presented = decide.credential_of(fields)
        assert presented is not None
        decide.identified(worker.authorizations.lookup(hashlib.sha256(presented.token).digest()))  # type: ignore[arg-type]

    def decided() -> None:
        decide.admit(admission, head.method, byok=False, allow_byok=True)
        decide.check(facts, admission.route)
        agents.agent_firewall(fields)
        agents.session_id(agents.detect_client(fields), fields, facts.user_id)

    def read_answer() -> Any:
        observer = observer_for(wire_format, content_type, "prompts")
        assert observer is not None
        shown = 0
        for piece in payload:
            observer.feed(piece)
            shown += len(piece)
            if shown >= COMPACT_BYTES:
                observer.compact()
                shown = 0
        return observer.finish()

    answer_facts = read_answer()
    ending = Ending()
    ending.status = 200

    def start() -> bytes:
        record = start_record(
            new_id(),
            time.time_ns() // 1000,
            identity,
            admission,
            ("centralized", hint),
            fields,
            facts,
            client=client,
            session="",
            revision=1,
            with_prompt=True,
            firewall=None,
        )
        return encode_record(record)

    interception = new_id()
    moments = dict.fromkeys(("identify", "body", "check", "record", "head", "end"), 100)

    def ended() -> bytes:
        trace = Trace([(hint, "")], [], [Attempt(hint, True, 200, "", 100)], dict(moments), [])
        record = end_record(
            interception,
            time.time_ns() // 1000,
            ending,
            hint=hint,
            facts=answer_facts,
            tool_results=(),
            trace=trace,
            content="prompts",
        )
        return encode_record(record)

    start_payload, end_payload = start(), ended()

    def records() -> None:
        start()
        ended()

    def journal() -> None:
        scene.journal.append_start(start_payload)
        scene.journal.append_end(end_payload)

    def metrics() -> None:
        inflight = worker.metrics.inflight(_name(admission), model, admission.route.label)
        inflight[0] += 1
        inflight[0] -= 1
        worker.metrics.ended(
            _name(admission),
            model,
            admission.route.label,
            client,
            status=200,
            outcome="completed",
            seconds=0.01,
            prompted=True,
            facts=answer_facts,
        )
        worker.metrics.keys_tried(_name(admission), 1)

    return {
        "request head read": lambda: parse_request_head(raw_head),
        "token known": authorise,
        "decided": decided,
        "request body read": lambda: read_request(wire_format, body, "prompts"),
        "records made": records,
        "journal written": journal,
        "upstream head made": lambda: upstream_head(
            head,
            admission,
            scene.key,
            len(body),
            own=False,
            misplaced=frozenset(),
            reads_plain=False,
            actor=worker.actor,
            identity=identity,
        ),
        "answer head read": lambda: parse_response_head(raw_answer_head),
        "answer head made": lambda: client_head(
            answer_head, id_line, byok=False, rechunked=False, keeps_client=True, timing=b""
        ),
        "answer read": read_answer,
        "metrics counted": metrics,
    }


def _name(admission: decide.Admission) -> str:
    return admission.provider.name


def payload_pieces(scene: Scene, answer_end: int) -> list[bytes]:
    """What the answer's reader is shown of each piece: the body without its framing."""
    if b"\r\ntransfer-encoding: chunked" not in scene.answer[:answer_end].lower():
        return [scene.answer[answer_end:]]
    left, found = scene.answer[answer_end:], []
    while left:
        line, _, left = left.partition(b"\r\n")
        size = int(line, 16)
        if size:
            found.append(left[:size])
        left = left[size + 2 :]
    return found


def torn(answer: bytes, *, by_event: bool) -> list[bytes]:
    """The answer in one read, or in one for the head and one for each event."""
    if not by_event:
        return [answer]
    end = answer.index(b"\r\n\r\n") + 4
    parts = answer[end:].split(b"\n\n\r\n")
    return [answer[:end], *(part + b"\n\n\r\n" for part in parts[:-1]), parts[-1]]


def in_turns(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Microseconds of each, all measured in turns for so long. Of what fails there is no number."""
    clock = time.perf_counter_ns
    timed = list({"": _nothing, **calls}.items())
    taken: dict[str, list[int]] = {name: [] for name, _ in timed}
    until = clock() + int(seconds * 1e9)
    while clock() < until:
        for name, call in timed:
            began = clock()
            call()
            taken[name].append(clock() - began)
    empty = median(taken.pop(""))
    return {name: max(0.0, median(spent) - empty) / 1e3 for name, spent in taken.items()}


def _nothing() -> None:
    pass


def able(calls: dict[str, Callable[[], object]]) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Those that can be called, and why the others cannot."""
    found, failed = {}, {}
    for name, call in calls.items():
        try:
            call()
        except Exception as exc:
            failed[name] = f"{type(exc).__name__}: {exc}"
        else:
            found[name] = call
    return found, failed


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """`order`: folder, seconds, and for each work its format, token, request, answer, and whether that comes event by event."""
    measured: dict[str, Any] = {}
    for work in order["works"]:
        folder = Path(order["folder"]) / work["name"]
        answer = Path(work["answer"]).read_bytes()
        request = Path(work["request"]).read_bytes()
        pieces = torn(answer, by_event=work["by_event"])
        scene = Scene(folder, work["format"], work["token"], request, answer, pieces)
        scene.check()
        calls, failed = able(stages(scene, _FORMATS[work["format"]]))
        gc.freeze()
        measured[work["name"]] = {
            "stages": (spent := in_turns({WHOLE: scene.call, **calls}, order["seconds"])),
            "failed": failed,
            "whole": spent.pop(WHOLE),
        }
        scene.journal.close()
    return measured


def main() -> None:
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text()))))


if __name__ == "__main__":
    main()
