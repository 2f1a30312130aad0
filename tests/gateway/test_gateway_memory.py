"""What many clients and providers make a worker hold together: answers that are read for their record, slow bodies."""

from collections.abc import Callable

import pytest
from gateway_sockets import CHAT, FORM, FORM_TYPE, Answer, Kind
from gateway_stage import Records, Step, World, counted, play

from ostiary.core.records import InterceptionEnd
from ostiary.http1.connections import BODY_GRACE
from ostiary.wire.observer import NO_MEMORY

KIB = 1024
BLOCKING: Kind = ("POST", "/openai/v1/chat/completions", "", CHAT)


def ends(world: World) -> list[InterceptionEnd]:
    return [record for record in world.records.since() if isinstance(record, InterceptionEnd)]


# --- answers


def asked(which: int, size: int) -> list[Step]:
    """A request, and a blocking answer of `size` bytes to it that is ready to be brought."""

    def tells(world: World) -> None:
        usage = b'"usage":{"prompt_tokens":5,"completion_tokens":%d}' % (7 + which)
        body = b'{"id":"attempt-%d","model":"m","choices":[],%b}' % (which, usage)
        body = body[:-1] + b" " * (size - len(body)) + b"}"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        (upstream,) = (one for one in world.upstreams if one.case)
        upstream.tell(Answer(head + body, body))

    return [lambda world: world.request(which, BLOCKING), ("connect", 0, 1), tells]


def brings(which: int, kib: int) -> Step:
    """So much more of it, as from a socket."""

    def step(world: World) -> None:
        for _ in range(kib // 8):
            world.upstreams[which].bring(8 * KIB)

    return step


def holds(kib: int) -> Step:
    def step(world: World) -> None:
        assert kib * KIB <= world.worker.answer_memory.held < (kib + 24) * KIB

    return step


BEGUN: list[Step] = [*asked(0, 64 * KIB), brings(0, 56), *asked(1, 64 * KIB), brings(1, 56)]


def test_answers_beyond_the_memory_for_them_flow_and_are_recorded_as_unread(records: Records) -> None:
    script: list[Step] = [*BEGUN, holds(40), brings(1, 100), brings(0, 100), *asked(0, 64 * KIB), brings(0, 100)]
    world = play(records, script, body_memory_max=72 * KIB)
    assert [client.out.count(b"HTTP/1.1 200 OK") for client in world.clients] == [2, 1]
    assert [len(client.out) // KIB for client in world.clients] == [128, 64]
    unread, *read = ends(world)
    assert (unread.unparsed, unread.outcome, unread.token_usages) == (True, "completed", [])
    assert unread.trace is not None
    assert any(NO_MEMORY in note for note in unread.trace.notes)
    assert [[usage.output_tokens for usage in end.token_usages] for end in read] == [[7], [7]]
    assert not any(end.unparsed for end in read)
    assert counted(world, "ostiary_unparsed_answers") == 1
    metrics = {family.name: family for family in world.worker.metrics_report().families}
    assert [sample.value for sample in metrics["ostiary_answers_without_memory"].samples] == [1]


@pytest.mark.parametrize(
    "end",
    [("cut", 0, 0), ("leave", 0, 0), ("leave", 0, 1), ("drain", 0, 0), ("cut", 0, 1)],
    ids=["provider resets", "client vanishes", "client closes", "worker ends", "provider closes"],
)
def test_what_an_answer_held_is_free_however_it_ends(records: Records, end: Step) -> None:
    """`play` looks whether all is free."""
    world = play(records, [*BEGUN, holds(80), end], body_memory_max=KIB * KIB)
    assert counted(world, "ostiary_unparsed_answers") >= 1
    assert world.worker.answer_memory.refusals == 0


# --- bodies that come too slowly


def uploads(world: World) -> None:
    """The beginning of a form, beyond its model and that of its file: it is on its way to the provider."""
    form = FORM[:1000]
    client = world.clients[0]
    client.request(("POST", "/openai/v1/audio/transcriptions", f"Content-Type: {FORM_TYPE}\r\n", FORM * 1000))
    head, _, _ = client.pending.partition(b"\r\n\r\n")
    client.pending = head + b"\r\n\r\n" + form
    world.do_client(0, 0)


def asks(world: World) -> None:
    """The beginning of a body that is read before anything is sent."""
    client = world.clients[0]
    client.request(("POST", "/openai/v1/chat/completions", "", CHAT + b" " * 100_000))
    client.pending, _ = client.pending[:-99_000], client.pending
    world.do_client(0, 0)


def drips(seconds: float) -> Step:
    """A byte a sweep, which is a second or less."""

    def step(world: World) -> None:
        for _ in range(int(seconds / world.worker.tick)):
            world.clients[0].transport.bring(b" ")
            world.worker.connections.sweep()

    return step


@pytest.mark.parametrize(("begin", "sent"), [(asks, 0), (uploads, 1)], ids=["kept", "passed on"])
def test_a_body_that_drips_is_refused_and_holds_nothing(
    records: Records, begin: Callable[[World], None], sent: int
) -> None:
    def goes_on(world: World) -> None:
        assert world.clients[0].out == b""

    def is_refused(world: World) -> None:
        out = world.clients[0].out
        assert out.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"Connection: close\r\n" in out
        assert b"less than 1024 bytes a second on average" in out
        assert world.worker._body_memory == 0

    script: list[Step] = [begin, ("connect", 0, 1), drips(BODY_GRACE), goes_on, drips(2.0), is_refused]
    world = play(records, script)
    assert len(world.sent) == sent
    assert [(end.outcome, end.status_code) for end in ends(world)] == [("rejected", 408)] * sent
    assert counted(world, "ostiary_refused_requests") == 1 - sent
