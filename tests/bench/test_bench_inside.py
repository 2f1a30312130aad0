"""The stages of a call are the product's own functions: this notices when one of them cannot be called any more."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import inside, stages
from tests.support.fake_provider import FakeProvider, fake_provider


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with fake_provider() as running:
        yield running


@pytest.mark.parametrize("case", stages.CASES, ids=lambda case: case.name)
def test_every_stage_and_the_whole_are_measured(case: stages.Case, provider: FakeProvider, tmp_path: Path) -> None:
    work = stages.write_case(tmp_path, case, int(provider.url.rpartition(":")[2]))

    told = inside.measure({"folder": str(tmp_path), "seconds": 0.2, "works": [work]})[case.name]

    assert told["failed"] == {}
    assert len(told["stages"]) == 11
    assert all(spent > 0 for spent in told["stages"].values())
    assert told["whole"] > max(told["stages"].values())


def test_a_stage_that_fails_leaves_its_reason_and_not_the_others() -> None:
    def broken() -> None:
        raise TypeError("no such argument")

    found, failed = inside.able({"good": lambda: 1, "broken": broken})

    assert list(found) == ["good"]
    assert failed == {"broken": "TypeError: no such argument"}


def test_an_answer_torn_by_event_is_the_same_answer() -> None:
    chunks = [b"data: one\n\n", b"data: two\n\n"]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body

    pieces = inside.torn(answer, by_event=True)

    assert b"".join(pieces) == answer
    assert [piece.count(b"data:") for piece in pieces] == [0, 1, 1, 0]
