"""What nobody foresaw, wherever it is raised: one request ends with a 500 or is visibly cut, its record has an end, nothing
leaks, the log says once where it was and repeats no value, and the next request is served.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_sockets import A1, A2, CHAT, FORM, FORM_TYPE, PATH, Kind
from gateway_stage import ASK, WHOLE, Records, Step, World, counted, play, says
from structlog.testing import capture_logs

from ostiary.core.build import BUILD
from ostiary.core.messages import Snapshot
from ostiary.core.providers import ProviderKey, ProviderSpec
from ostiary.core.records import InterceptionEnd, InterceptionStart, Trace
from ostiary.core.secret import Secret
from ostiary.core.settings import GatewaySettings
from ostiary.gateway import providers
from ostiary.gateway.failures import where
from ostiary.gateway.interception import Interception
from ostiary.gateway.journal import Journal
from ostiary.gateway.providers.adapter import Prepared, TransformError
from ostiary.gateway.providers.base import RuntimeKey, RuntimeProvider
from ostiary.gateway.providers.openai import build_openai
from ostiary.gateway.recording import Ending
from ostiary.gateway.routes import Route
from ostiary.http1.head import ResponseHead
from ostiary.wire.facts import ResponseFacts

TELLING = "what the client said in confidence, and " + A1
"""Text of the exceptions: none of it may be logged."""

LATER: list[Step] = [("ask", 0, 0), ("client", 0, 0), ("trial", 0, 1), ("connect", 0, 1), says(200), WHOLE]


class Mistake(Exception):
    """Of a kind that nothing in the gateway knows."""


class Faulty:
    """An adapter, and what it makes of answers: correct but for `fault`, the step of which raises."""

    hint = "faulty"
    content_type = b""
    edit = "answer: none"

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def _step(self, name: str) -> None:
        if name == self._fault:
            raise Mistake(TELLING)

    def prepare(self, route: Route, query: bytes, fields: Any, body: bytes, facts: Any) -> Prepared:
        self._step("prepare")
        return Prepared(target=b"/v1" + route.label.encode(), body=body, model="m")

    async def authorize(self, method: bytes, prepared: Prepared) -> tuple[bytes, str]:
        self._step("authorize")
        if self._fault == "cancelled":
            raise asyncio.CancelledError
        return b"Authorization: Bearer " + A1.encode() + b"\r\n", "hint"

    def transform(self, route: Route, head: ResponseHead) -> "Faulty":
        self._step("transform")
        return self

    def feed(self, payload: bytes) -> bytes:
        self._step("feed")
        return payload

    def finish(self) -> bytes:
        self._step("finish")
        return b""


class Provider(RuntimeProvider):
    """One whose path or query raises, from a moment on."""

    __slots__ = ("fault",)

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.fault = ""
        """`path` or `query`; empty for none."""

    def upstream_path(self, rest: bytes) -> bytes:
        if self.fault == "path":
            raise Mistake(TELLING)
        return super().upstream_path(rest)

    def upstream_query(self, query: bytes) -> bytes:
        if self.fault == "query":
            raise Mistake(TELLING)
        return super().upstream_query(query)


def spec(host: str = "a.test") -> ProviderSpec:
    keys = (ProviderKey("1", Secret(A1)), ProviderKey("2", Secret(A2)))
    return ProviderSpec("openai", "openai", "openai", enabled=True, base_url=f"http://{host}/v1", keys=keys)


def of_type_openai(**more: Any) -> RuntimeProvider:
    built = build_openai(spec(), providers.ProviderType.OPENAI, allow_byok=True)
    kind = RuntimeProvider if BUILD == "compiled" else Provider
    return kind(spec(), "openai", built.routes, strip=b"/v1", **more)


stands_in = pytest.mark.skipif(BUILD == "compiled", reason="no method of a compiled provider can be made to fail")


def with_adapter(fault: str) -> Step:
    def step(world: World) -> None:
        assert world.worker.snapshot is not None
        world.worker.snapshot.providers["openai"] = of_type_openai(adapter=Faulty(fault))

    return step


def served(world: World) -> None:
    """From now on correctly, by the usual provider."""
    world.do_reload(0, 3)


def logged(records: Records, script: list[Step], *, mistakes: int = 1, **overrides: Any) -> tuple[World, str]:
    """Play it; then a request that goes well. Gives what was logged of the mistake: once."""
    with capture_logs() as logs:
        world = play(records, [*script, served, *LATER], mistakes=mistakes, **overrides)
    last = world.clients[0].out.rpartition(b"HTTP/1.1 ")[2]
    assert last.startswith(b"200"), "the worker serves on"
    lines = [line for line in logs if line["event"] == "failing to serve a request"]
    assert len(lines) == 1
    assert TELLING not in str(logs)
    assert A1 not in str(logs)
    return world, str(lines[0]["exception"])


def first_answer(world: World) -> bytes:
    return min(world.clients_of.items())[1].out


def the_end(world: World) -> InterceptionEnd:
    """Of the first request."""
    return next(record for record in world.records.since() if isinstance(record, InterceptionEnd))


FAILS_BEFORE_SENDING: list[tuple[str, Kind | None]] = [
    ("prepare", None),
    ("authorize", None),
    ("cancelled", None),
    ("prepare", ("GET", "/openai/v1/models", "", b"")),
    ("authorize", ("GET", "/openai/v1/models", "", b"")),
    ("prepare", ("POST", "/openai/v1/chat/completions", "", CHAT + b" " * 5_000_000)),
]


@pytest.mark.parametrize(("fault", "asked"), FAILS_BEFORE_SENDING)
def test_a_mistake_before_anything_is_sent_is_answered_with_500(
    records: Records, fault: str, asked: Kind | None
) -> None:
    asks: Step = ASK[0] if asked is None else lambda world: world.request(0, asked)
    world, trace = logged(records, [with_adapter(fault), asks, ASK[1]])
    out = first_answer(world)
    assert out.startswith(b"HTTP/1.1 500 ")
    assert b'"type":"server_error"' in out
    assert ("_step" if fault != "cancelled" else "CancelledError") in trace
    assert len(world.sent) == 1, "the one that goes well"
    if fault != "prepare" and asked is None:
        ended = the_end(world)
        assert (ended.outcome, ended.status_code, ended.error_type) == ("rejected", 500, "server_error")
        assert b"x-ostiary-interception-id: " + ended.id.encode() in out


def test_large_bodies_behind_the_one_that_fails_are_checked(records: Records) -> None:
    large: Kind = ("POST", "/openai/v1/chat/completions", "", CHAT + b" " * 5_000_000)

    def both(world: World) -> None:
        world.request(0, large)
        world.request(1, large)

    world = play(records, [with_adapter("prepare"), both], mistakes=2)
    assert [client.out[:12] for client in world.clients] == [b"HTTP/1.1 500"] * 2


def test_a_large_body_is_let_go_of_when_its_client_leaves_before_its_turn(records: Records) -> None:
    large: Kind = ("POST", "/openai/v1/chat/completions", "", CHAT + b" " * 5_000_000)

    def leaves(world: World) -> None:
        world.worker.check_large(lambda: None)  # another's turn
        world.request(0, large)
        (exchange,) = world.worker._live
        assert len(exchange._large_body) > 5_000_000  # type: ignore[attr-defined]
        world.clients[0].transport.lose(None)
        assert exchange._large_body == b""  # type: ignore[attr-defined]

    play(records, [leaves])


@stands_in
@pytest.mark.parametrize("asked", [False, True], ids=["a known token", "one that is asked for"])
def test_a_mistake_in_finding_the_provider(records: Records, asked: bool) -> None:
    def breaks(world: World) -> None:
        assert world.worker.snapshot is not None
        provider = of_type_openai()
        provider.fault = "path"  # type: ignore[attr-defined]
        world.worker.snapshot.providers["openai"] = provider
        if asked:
            world.worker.authorizations.ask_again(0.0)

    world, trace = logged(records, [breaks, *ASK[:2]])
    assert first_answer(world).startswith(b"HTTP/1.1 500 ")
    assert "upstream_path" in trace


def test_a_connection_that_fails_in_an_unknown_way(records: Records) -> None:
    def elsewhere(world: World) -> None:
        world.worker.take_snapshot(Snapshot(2, (spec("unknown.test"),)))  # the stage's resolver raises KeyError

    world, trace = logged(records, [elsewhere, *ASK[:2]])
    assert first_answer(world).startswith(b"HTTP/1.1 500 ")
    assert "KeyError" in trace
    assert the_end(world).outcome == "rejected"


def test_a_mistake_at_the_head_of_an_answer_is_a_500(records: Records) -> None:
    script: list[Step] = [with_adapter("transform"), *ASK, says(200), ("bring", 0, 3)]
    world, _ = logged(records, script)
    assert first_answer(world).startswith(b"HTTP/1.1 500 ")
    assert the_end(world).outcome == "rejected"


@pytest.mark.parametrize("fault", ["feed", "finish"])
def test_a_mistake_in_the_middle_of_an_answer_cuts_it_and_blames_nobody(records: Records, fault: str) -> None:
    script: list[Step] = [with_adapter(fault), *ASK, says(200), ("bring", 0, 3), WHOLE]
    world, _ = logged(records, script)
    out = first_answer(world)
    assert out.startswith(b"HTTP/1.1 200 ")
    assert not out.endswith(b"0\r\n\r\n")
    ended = the_end(world)
    assert (ended.outcome, ended.error_type) == ("interrupted", "server_error")
    assert not world.worker.health.breakers.tracked
    assert counted(world, "ostiary_upstream_failures") == 0


class FailsOnce(Faulty):
    """Cannot read the first piece of an answer, and would read what follows."""

    def __init__(self, error: Exception) -> None:
        super().__init__("")
        self.fed: list[bytes] = []
        self._error = error

    def feed(self, payload: bytes) -> bytes:
        self.fed.append(payload)
        if len(self.fed) == 1:
            raise self._error
        return payload


@pytest.mark.parametrize("error", [Mistake(TELLING), TransformError("not to be read")], ids=["a mistake", "unreadable"])
def test_an_answer_that_was_cut_does_not_go_on_with_what_came_in_the_same_read(
    records: Records, error: Exception
) -> None:
    adapter = FailsOnce(error)

    def adapts(world: World) -> None:
        assert world.worker.snapshot is not None
        world.worker.snapshot.providers["openai"] = of_type_openai(adapter=adapter)

    def answers(world: World) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        world.tell(head + b"8\r\nattempt-\r\n4\r\nmore\r\n0\r\n\r\n", b"attempt-more")

    world = play(records, [adapts, *ASK, answers, WHOLE], mistakes=isinstance(error, Mistake))
    assert adapter.fed == [b"attempt-"]
    out = first_answer(world)
    assert out.startswith(b"HTTP/1.1 200 ")
    assert out.endswith(b"\r\n\r\n"), "its head alone"


def test_a_connection_that_cannot_be_ended_keeps_no_answer_from_a_client_whose_body_stops_coming(
    records: Records,
) -> None:
    def begins(world: World) -> None:
        client = world.clients[0]
        head = f"Content-Type: {FORM_TYPE}\r\nTransfer-Encoding: chunked\r\n"
        client.request(("POST", "/openai/v1/audio/transcriptions", head, FORM))
        client.transport.bring(client.pending[:-5])
        client.pending = b""

    def breaks(world: World) -> None:
        def abort() -> None:
            raise Mistake(TELLING)

        (upstream,) = world.upstreams
        upstream.transport.abort = abort  # type: ignore[method-assign]

    stalls: list[Step] = [("time", 3, 1)] * 4
    world = play(records, [begins, ("connect", 0, 1), breaks, *stalls], mistakes=1, client_body_timeout=4.0)
    assert first_answer(world).startswith(b"HTTP/1.1 408 ")
    ended = the_end(world)
    assert (ended.outcome, ended.status_code) == ("rejected", 408)


def breaking(world: World) -> None:
    """From now on queries raise."""
    provider = world.worker.snapshot.providers["openai"]  # type: ignore[union-attr]
    provider.fault = "query"  # type: ignore[attr-defined]


def with_keys(world: World) -> None:
    lines = tuple(RuntimeKey(key, Secret(key), b"Authorization: Bearer " + key.encode() + b"\r\n") for key in (A1, A2))
    snapshot = world.worker.snapshot
    assert snapshot is not None
    snapshot.providers["openai"] = of_type_openai(keys=lines)
    world.worker.health.take_snapshot(snapshot)


@stands_in
def test_a_mistake_when_the_next_key_is_to_be_used(records: Records) -> None:
    world, _ = logged(records, [with_keys, *ASK, says(429), ("bring", 0, 2), breaking, WHOLE])
    assert first_answer(world).startswith(b"HTTP/1.1 500 ")
    assert [sent.key for sent in world.sent] == [A1, A2], "the second one is the later request's"


@stands_in
def test_a_mistake_when_a_5xx_is_repeated(records: Records) -> None:
    world, _ = logged(records, [with_keys, *ASK, says(500), ("bring", 0, 2), breaking, WHOLE], retry_5xx=1)
    assert first_answer(world).startswith(b"HTTP/1.1 500 ")
    assert the_end(world).outcome == "rejected"


@stands_in
def test_a_mistake_when_a_trial_is_granted_gives_the_trial_back(records: Records) -> None:
    refused: list[Step] = [*ASK, says(401), WHOLE, ("connect", 0, 1), says(401), WHOLE, ("time", 1, 3)]
    world, _ = logged(records, [with_keys, *refused, *ASK[:2], breaking, ("trial", 0, 1)])
    assert world.trials["granted"] == world.trials["ended"] >= 1


def test_a_mistake_in_a_timer(records: Records) -> None:
    """The rest of an error is slow, and when it is let go of it cannot be read."""

    def alone(world: World) -> None:
        snapshot = world.worker.snapshot
        assert snapshot is not None
        provider = of_type_openai(keys=snapshot.providers["openai"].keys[:1])
        snapshot.providers["openai"] = provider
        world.worker.health.take_snapshot(snapshot)

    def reads_wrongly(world: World) -> None:
        (exchange,) = world.worker._live
        exchange.admission.provider.adapter = Faulty("transform")  # type: ignore[attr-defined]

    script: list[Step] = [with_keys, alone, *ASK, says(429), ("bring", 0, 2), reads_wrongly, ("time", 0, 2)]
    world, _ = logged(records, script)
    assert first_answer(world).startswith(b"HTTP/1.1 500 ")


@stands_in
def test_a_mistake_while_an_upload_comes(records: Records) -> None:
    form = (
        b'--xx\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--xx\r\n'
        + b"s" * 300
        + b"\r\n--xx--\r\n"
    )
    upload: Kind = ("POST", "/openai/v1/audio/transcriptions", f"Content-Type: {FORM_TYPE}\r\n", form)
    script: list[Step] = [with_keys, breaking, lambda world: world.request(0, upload)]
    world, _ = logged(records, script)
    assert first_answer(world).startswith(b"HTTP/1.1 500 ")


def at_front_door(method: str, head: str = "", begun: bytes = b"") -> Step:
    """A request for the control plane; `begun`: what is sent of its body."""

    def asks(world: World) -> None:
        client = world.clients[0]
        client.request((method, "/", head, b""))
        lines = client.pending.partition(b"\r\n\r\n")[0].replace(f" {PATH}/ ".encode(), b" /api/v2/buildinfo ")
        client.pending = lines + b"\r\n\r\n" + begun
        world.do_client(0, 0)

    return asks


def test_the_front_door_too_answers_what_it_did_not_foresee(records: Records) -> None:
    world, trace = logged(records, [at_front_door("GET")], control_url="http://unknown.test")
    assert first_answer(world).startswith(b"HTTP/1.1 500 ")
    assert "KeyError" in trace


def test_a_mistake_at_the_head_of_the_control_planes_answer_is_a_500(records: Records) -> None:
    def takes_it_wrongly(world: World) -> None:
        (exchange,) = world.worker._live
        del exchange._head  # type: ignore[attr-defined]
        world.tell(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n.", b"")
        world.do_bring(0, 3)

    script: list[Step] = [at_front_door("GET"), ("connect", 0, 1), takes_it_wrongly]
    world, trace = logged(records, script, control_url="http://a.test")
    assert first_answer(world).startswith(b"HTTP/1.1 500 ")
    assert "_take_head" in trace


@pytest.mark.parametrize("broken", [False, True], ids=["stalls", "breaks"])
def test_no_refusal_is_written_into_an_answer_of_the_control_plane(records: Records, broken: bool) -> None:
    """It has begun before the end of the request's body, which then does not come."""

    def begins_to_answer(world: World) -> None:
        world.tell(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nattempt-", b"attempt-" + b"." * 92)
        world.do_bring(0, 0)

    def goes_on_wrongly(world: World) -> None:
        if broken:
            world.clients[0].transport.bring(b"no size\r\n")
        else:
            for _ in range(10):
                world.do_time(3, 0)
            assert world.clients[0].transport.closing

    asks = at_front_door("POST", "Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n")
    script: list[Step] = [asks, ("connect", 0, 1), begins_to_answer, goes_on_wrongly]
    out = first_answer(play(records, script, control_url="http://a.test", client_body_timeout=4.0))
    assert out.count(b"HTTP/1.1 ") == 1
    assert out.endswith(b"attempt-")


def test_one_provider_that_cannot_be_built_in_an_unknown_way_takes_no_other_down() -> None:
    odd = ProviderSpec("odd", "odd", "openai", enabled=True, base_url=7)  # type: ignore[arg-type]
    built = providers.build_provider(odd, allow_byok=True)
    assert "a mistake of the gateway's" in built.error


# --- the record


START = InterceptionStart("00000000-0000-7000-8000-000000000001", "u", "k", "openai", "openai", "m", "/r", 1)


def test_an_end_that_cannot_be_encoded_is_written_without_what_was_said(records: Records) -> None:
    def ends(world: World) -> None:
        record = Interception(world.worker, START, ())
        ending = Ending()
        ending.status = 200
        facts = ResponseFacts(output_text="\ud800")
        record.end(ending, hint="h", facts=facts, trace=Trace(), seconds=1.0)

    world = play(records, [ends], mistakes=1, record_content="full")
    ended = the_end(world)
    assert (ended.id, ended.outcome, ended.status_code, ended.unparsed) == (START.id, "completed", 200, True)


def test_a_ballast_that_somebody_has_removed_is_no_mistake(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, GatewaySettings(journal_dir=str(tmp_path)), "one", lambda: 0.0)
    (tmp_path / "one" / "ballast").unlink()
    assert journal._drop_ballast() is False
    journal.close()


# --- the log


def test_a_flood_of_mistakes_is_a_line_a_second(records: Records) -> None:
    asks: Callable[[World], None] = lambda world: world.request(0, ("POST", "/openai/v1/chat/completions", "", CHAT))  # noqa: E731
    with capture_logs() as logs:
        world = play(
            records, [with_adapter("prepare"), *[asks] * 20, ("time", 0, 1), asks, ("time", 0, 1)], mistakes=21
        )
    lines = [line for line in logs if line["event"] == "failing to serve a request"]
    assert [line["left_out"] for line in lines] == [0, 19]
    assert world.clients[0].out.count(b"HTTP/1.1 500 ") == 21


def test_the_causes_of_an_exception_are_told_without_their_texts() -> None:
    try:
        try:
            raise Mistake(TELLING)
        except Mistake as error:
            raise KeyError(TELLING) from error
    except KeyError as error:
        told = where(error)
    assert "KeyError" in told
    assert told.index("Mistake") > told.index("KeyError")
    assert A1 not in told
