"""Requests that leave no record are found in the log by the id that their clients were told, and cannot flood it."""

import re
from typing import Any

import pytest
from gateway_sockets import CHAT, Kind
from gateway_stage import Records, Step, World, counted, play
from structlog.testing import capture_logs

from ostiary.gateway.refusal_log import RefusalLog
from ostiary.gateway.refusals import Refusal

REFUSED: dict[str, Kind] = {
    "unknown_provider": ("POST", "/nobody/v1/chat/completions?key=in-confidence", "", CHAT),
    "unknown_route": ("GET", "/openai/v1/nothing?key=in-confidence", "", b""),
    "bad_method": ("GET", "/openai/v1/chat/completions?key=in-confidence", "", b""),
    "bad_request": ("POST", "/openai/v1/chat/completions?key=in-confidence", "", b"in-confidence"),
    "upgrade": ("GET", "/openai/v1/responses?key=in-confidence", "Connection: upgrade\r\nUpgrade: websocket\r\n", b""),
}


def asks(kind: Kind) -> Step:
    def step(world: World) -> None:
        world.request(0, kind)

    return step


def refused(records: Records, script: list[Step]) -> tuple[World, list[Any]]:
    """What was logged of refusals."""
    with capture_logs() as logs:
        world = play(records, script)
    return world, [line for line in logs if line["event"] == "refusing a request"]


@pytest.mark.parametrize("reason", REFUSED)
def test_the_log_has_a_refusal_under_the_id_that_its_client_was_told(records: Records, reason: str) -> None:
    world, (line,) = refused(records, [asks(REFUSED[reason])])
    status, told = re.findall(rb"HTTP/1.1 (\d+) (?:.*\r\n)*?x-ostiary-request-id: (\S+)", world.clients[0].out)[0]
    assert (line["request_id"], line["reason"], line["status"]) == (told.decode(), reason, int(status))
    assert line["path"].endswith(REFUSED[reason][1].partition("?")[0])
    assert "in-confidence" not in str(line)
    assert counted(world, "ostiary_refused_requests") == 1


def test_a_head_that_cannot_be_read_is_told_too(records: Records) -> None:
    def nonsense(world: World) -> None:
        world.clients[0].transport.bring(b"GET /in-confidence HTTP/1.1\r\nno-colon\r\n\r\n")

    world, (line,) = refused(records, [nonsense])
    assert f"x-ostiary-request-id: {line['request_id']}\r\n".encode() in world.clients[0].out
    assert (line["reason"], line["status"]) == ("bad_head", 400)
    assert "in-confidence" not in str(line)


def test_a_flood_is_a_line_a_second_for_each_reason() -> None:
    now, counts = 100.0, []
    refusals = RefusalLog(lambda: now, counts.append)
    with capture_logs() as logs:
        for _ in range(20):
            refusals.note(Refusal(404, "unknown_route", "No."), "id", b"/x")
            refusals.note(Refusal(401, "no_token", "No."), "id", b"/x")
        now += 1
        refusals.note(Refusal(404, "unknown_route", "No."), "id", b"/" + b"x" * 1000)
        now += 1
        refusals.note(Refusal(404, "unknown_route", "No."), "id", b"/x")
    found = [(line["reason"], line["left_out"]) for line in logs]
    assert found == [("unknown_route", 0), ("no_token", 0), ("unknown_route", 19), ("unknown_route", 0)]
    assert len(logs[2]["path"]) == 200
    assert len(counts) == 42
