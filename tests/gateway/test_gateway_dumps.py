"""Every attempt has its files; what is told is in them, and telling never waits."""

import gzip
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import brotli
import pytest
import zstandard
from structlog.testing import capture_logs

from ostiary.gateway.dump import Attempt, Dumps
from ostiary.gateway.dump_files import DumpFiles, Place
from tests.support.supervised import eventually

MIB = 1 << 20
ID = "0198c0de-0000-7000-8000-00000000abcd"
KEY = b"sk-0123456789-the-whole-key"
REQUEST = b"POST /v1/messages HTTP/1.1\r\nHost: h\r\nX-Api-Key: " + KEY + b"\r\nContent-Length: 7\r\n\r\n"
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nSet-Cookie: a="
    + KEY
    + b"\r\n\r\n"
)
ANSWER_SHOWN = ANSWER.replace(b"a=" + KEY, b"a=sk...-key")
EVENTS = b"".join(b'event: delta\ndata: {"n":%d}\n\n' % n for n in range(500))


@contextmanager
def written(dumps: Dumps) -> Iterator[Dumps]:
    """At the end all that was told is in its files, however slow this machine is."""
    yield dumps
    dumps.close(timeout=60)


def dumps_at(base: Path, file_max_bytes: int = MIB) -> AbstractContextManager[Dumps]:
    return written(Dumps(DumpFiles(str(base), 1 << 30), file_max_bytes))


def attempt_of(dumps: Dumps, number: int = 1, model: str | None = "claude") -> Attempt:
    return dumps.attempt("anthropic", model, "/v1/messages", ID, number, 1_700_000_000_000)


def said(base: Path, number: int = 1) -> dict[str, bytes]:
    """What stands in the files of an attempt, by their kind."""
    stem = f"1700000000000-{ID}-{number}."
    return {path.name.removeprefix(stem): path.read_bytes() for path in base.rglob(stem + "*")}


def test_request_and_answer_stand_in_files_of_their_own(tmp_path: Path) -> None:
    with written(Dumps.open(str(tmp_path / "base"), MIB, 1 << 30)) as dumps:
        attempt = attempt_of(dumps)
        attempt.request(REQUEST, b'{"a":1}')
        attempt.response_head(ANSWER)
        for at in range(0, len(EVENTS), 7):
            attempt.response(EVENTS[at : at + 7])
        attempt.close()
    assert {path.parent for path in tmp_path.rglob("*.txt")} == {tmp_path / "base" / "anthropic" / "claude"}
    assert said(tmp_path) == {
        "req.txt": b"POST /v1/messages HTTP/1.1\r\nHost: h\r\nX-Api-Key: sk-0...-key\r\nContent-Length: 12\r\n\r\n"
        b'{\n  "a": 1\n}',
        "resp.txt": ANSWER_SHOWN + EVENTS,
    }


def test_every_attempt_has_its_own_files(tmp_path: Path) -> None:
    with dumps_at(tmp_path) as dumps:
        for number, status in ((1, b"429 Too Many Requests"), (2, b"401 Unauthorized"), (3, b"200 OK")):
            attempt = attempt_of(dumps, number)
            attempt.request(REQUEST, b"{}")
            attempt.response_head(b"HTTP/1.1 " + status + b"\r\n\r\n")
            attempt.close()
    for number, status in ((1, b"429 Too Many Requests"), (2, b"401 Unauthorized"), (3, b"200 OK")):
        assert said(tmp_path, number)["resp.txt"] == b"HTTP/1.1 " + status + b"\r\n\r\n"
        assert "req.txt" in said(tmp_path, number)


def test_a_failure_is_told_beside_the_request(tmp_path: Path) -> None:
    with dumps_at(tmp_path) as dumps:
        attempt = attempt_of(dumps)
        attempt.request(REQUEST, b"{}")
        attempt.failed(f"https://h/?key=abcdefghijklmnopqrstuvwxyz refused {KEY.decode()}")
    assert said(tmp_path).keys() == {"req.txt", "req_error.txt"}
    assert said(tmp_path)["req_error.txt"] == b"https://h/?key=abcd...wxyz refused sk-0...-key\n"


def test_a_failure_within_the_answer_is_told_in_both(tmp_path: Path) -> None:
    with dumps_at(tmp_path) as dumps:
        attempt = attempt_of(dumps)
        attempt.request(REQUEST, b"{}")
        attempt.response_head(ANSWER)
        attempt.response(b"data: sk-01")  # what looks like the beginning of the key
        attempt.failed("connection reset")
        attempt.response(b"not any more")
    assert said(tmp_path)["resp.txt"] == ANSWER_SHOWN + b"data: sk-01\n\n[ostiary: cut here: connection reset]\n"
    assert said(tmp_path)["req_error.txt"] == b"connection reset\n"


def test_passthrough_is_named_by_its_path(tmp_path: Path) -> None:
    with dumps_at(tmp_path) as dumps:
        attempt = dumps.attempt("openai", None, "/v1/models/gpt", ID, 1, 1_700_000_000_000)
        attempt.request(b"GET /v1/models/gpt HTTP/1.1\r\n\r\n", b"")
        attempt.close()
    path = tmp_path / "openai" / "passthrough" / "1700000000000-v1-models-gpt-abcd.req.txt"
    assert path.read_bytes() == b"GET /v1/models/gpt HTTP/1.1\r\n\r\n"


def test_a_streamed_upload_is_shown_as_it_is(tmp_path: Path) -> None:
    with dumps_at(tmp_path) as dumps:
        attempt = attempt_of(dumps)
        attempt.request(REQUEST, b"")
        attempt.request_piece(b'{"a":')
        attempt.response_head(b"HTTP/1.1 413 Too Large\r\n\r\n")
        attempt.request_piece(b"\x00\xff}")
        attempt.close("the client left")
    assert said(tmp_path)["req.txt"].endswith(b'Content-Length: 7\r\n\r\n{"a":\x00\xff}')
    assert said(tmp_path)["resp.txt"] == b"HTTP/1.1 413 Too Large\r\n\r\n\n\n[ostiary: cut here: the client left]\n"


def test_a_streamed_upload_in_chunks_is_shown_without_them(tmp_path: Path) -> None:
    with dumps_at(tmp_path) as dumps:
        attempt = attempt_of(dumps)
        attempt.request(REQUEST.replace(b"Content-Length: 7", b"Transfer-Encoding: chunked"), b"")
        for piece in (b'5\r\n{\r\n"a\r\n', b'b\r\n":\x00\xff}      \r\n0\r\n\r\n', b"0\r\n\r\n"):
            attempt.request_piece(piece)
        attempt.close()
    assert said(tmp_path)["req.txt"].endswith(b'Transfer-Encoding: chunked\r\n\r\n{\r\n"a":\x00\xff}      ')


@pytest.mark.parametrize(
    ("coding", "encode"),
    [
        (b"gzip", gzip.compress),
        (b"deflate", zlib.compress),
        (b"br", brotli.compress),
        (b"zstd", zstandard.ZstdCompressor().compress),
    ],
)
def test_an_encoded_answer_is_stored_decoded(tmp_path: Path, coding: bytes, encode: Callable[[bytes], bytes]) -> None:
    body = b"Incorrect API key provided: " + KEY + b". " + EVENTS
    encoded = encode(body)
    with dumps_at(tmp_path) as dumps:
        attempt = attempt_of(dumps)
        attempt.request(REQUEST, b"{}")
        attempt.response_head(b"HTTP/1.1 401 Unauthorized\r\nContent-Encoding: " + coding + b"\r\n\r\n")
        for at in range(0, len(encoded), 11):
            attempt.response(encoded[at : at + 11])
        attempt.close()
    assert said(tmp_path)["resp.txt"] == (
        b"HTTP/1.1 401 Unauthorized\r\nContent-Encoding: " + coding + b"\r\n"
        b"X-Ostiary-Dump: the body is stored without its content coding\r\n\r\n" + body.replace(KEY, b"sk-0...-key")
    )


def test_an_answer_in_an_unknown_coding_is_kept_as_it_came(tmp_path: Path) -> None:
    with dumps_at(tmp_path) as dumps:
        attempt = attempt_of(dumps)
        attempt.response_head(b"HTTP/1.1 200 OK\r\nContent-Encoding: rot13\r\n\r\n")
        attempt.response(b"uryyb")
        attempt.close()
    assert said(tmp_path)["resp.txt"].endswith(b"\r\n\r\nuryyb")


def test_an_answer_that_is_not_what_its_coding_says_ends_with_the_reason(tmp_path: Path) -> None:
    encoded = gzip.compress(EVENTS)
    with dumps_at(tmp_path) as dumps:
        attempt = attempt_of(dumps)
        attempt.response_head(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n")
        for piece in (encoded[:1000], encoded[1000:-8], b"not the sum", b"more"):
            attempt.response(piece)
        attempt.close()
    shown, _, note = said(tmp_path)["resp.txt"].partition(b"\n\n[ostiary: ")
    assert shown.endswith(b"\r\n\r\n" + EVENTS)
    assert note.startswith(b"cut here: the body is not what its content coding says")


def test_a_file_is_cut_at_its_limit_and_says_so(tmp_path: Path) -> None:
    with dumps_at(tmp_path, file_max_bytes=10_000) as dumps:
        attempt = attempt_of(dumps)
        attempt.request(REQUEST, b'{"a":"' + b"x" * 50_000 + b'"}')
        attempt.response_head(ANSWER)
        for _ in range(50):
            attempt.response(b"y" * 1000)
        attempt.close()
    for text in said(tmp_path).values():
        shown, _, note = text.partition(b"\n\n[ostiary: ")
        assert len(shown) == 10_000
        assert note == b"cut here: a dump's file holds 10000 bytes at most (dump_file_max_bytes)]\n"


def test_an_answer_that_unfolds_to_gigabytes_is_cut_too(tmp_path: Path) -> None:
    encoded = gzip.compress(b" " * 50_000_000)
    with dumps_at(tmp_path, file_max_bytes=10_000) as dumps:
        attempt = attempt_of(dumps)
        attempt.response_head(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n")
        for at in range(0, len(encoded), 1000):
            attempt.response(encoded[at : at + 1000])
        attempt.close()
    assert len(said(tmp_path)["resp.txt"]) < 10_200


def test_what_goes_on_is_in_its_file_before_it_ends(tmp_path: Path) -> None:
    def ends_with(kind: str, end: bytes) -> bool:
        return said(tmp_path).get(kind, b"").endswith(end)

    with dumps_at(tmp_path) as dumps:
        attempt = attempt_of(dumps)
        attempt.request(REQUEST, b"{}")
        eventually(lambda: ends_with("req.txt", b"{}"), "the request in its file")
        attempt.response_head(ANSWER)
        attempt.response(EVENTS)
        eventually(lambda: ends_with("resp.txt", EVENTS), "the answer in its file")
        attempt.close()


# --- when the disk does not do


class SlowDisk(DumpFiles):
    """A disk that takes nothing until it is told to go on."""

    def __init__(self, base: str) -> None:
        super().__init__(base, 1 << 30)
        self.goes_on = threading.Event()

    def append(self, place: Place, kind: str, data: bytes, *, new: bool) -> None:
        self.goes_on.wait()
        super().append(place, kind, data, new=new)


def test_a_slow_disk_cuts_dumps_and_delays_nobody(tmp_path: Path) -> None:
    disk = SlowDisk(str(tmp_path))
    with capture_logs() as lines, written(Dumps(disk, MIB, 1 * MIB)) as dumps:
        first = attempt_of(dumps, 1)
        first.request(REQUEST, b"{}")
        first.response_head(ANSWER)
        began = time.monotonic()
        for _ in range(100):
            first.response(b"y" * 100_000)
        second = attempt_of(dumps, 2)
        second.request(REQUEST, b"x" * MIB)
        second.response_head(ANSWER)
        second.close()
        first.close()
        assert time.monotonic() - began < 15
        disk.goes_on.set()
    assert said(tmp_path, 1)["resp.txt"].startswith(ANSWER_SHOWN + b"y" * 100_000)
    assert said(tmp_path, 1)["resp.txt"].endswith(b"y\n\n[ostiary: cut here: the disk was too slow]\n")
    assert len(said(tmp_path, 1)["resp.txt"]) < MIB
    assert said(tmp_path, 2) == {}
    assert [line["event"] for line in lines] == ["leaving out dumps, the disk is too slow"]


def test_room_in_the_queue_comes_back(tmp_path: Path) -> None:
    disk = SlowDisk(str(tmp_path))
    with written(Dumps(disk, MIB, 10_000)) as dumps:
        first = attempt_of(dumps, 1)
        first.request(REQUEST, b"x" * 20_000)
        first.close()
        disk.goes_on.set()
        for number in range(2, 30):
            attempt = attempt_of(dumps, number)
            attempt.request(REQUEST, b"x" * 9_000)
            attempt.close()
            eventually(lambda: dumps._told == dumps._writer.written, "an empty queue")
            assert said(tmp_path, number).keys() == {"req.txt"}
    assert said(tmp_path, 1) == {}


def test_the_end_waits_for_a_while_only(tmp_path: Path) -> None:
    disk = SlowDisk(str(tmp_path))
    dumps = Dumps(disk, MIB)
    attempt = attempt_of(dumps)
    attempt.request(REQUEST, b"{}")
    with capture_logs() as lines:
        began = time.monotonic()
        dumps.close(timeout=0.05)
        assert time.monotonic() - began < 15
    assert [line["event"] for line in lines] == ["leaving dumps unwritten"]
    attempt.response_head(ANSWER)
    attempt.close()
    disk.goes_on.set()
    dumps._writer.join(20)
    assert said(tmp_path).keys() == {"req.txt"}


def test_what_is_told_after_the_end_is_nothing(tmp_path: Path) -> None:
    dumps = Dumps.open(str(tmp_path), MIB, 1 << 30)
    dumps.close()
    dumps.close()
    attempt = attempt_of(dumps)
    attempt.request(REQUEST, b"{}")
    attempt.failed("too late")
    assert list(tmp_path.rglob("*.txt")) == []


def test_a_directory_that_cannot_be_made_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with capture_logs() as lines, dumps_at(tmp_path / "file" / "base") as dumps:
        for number in range(1, 20):
            attempt = attempt_of(dumps, number)
            attempt.request(REQUEST, b"{}")
            attempt.close()
    assert [(line["event"], line["error"]) for line in lines] == [("failing to write dumps", "Not a directory")]


def test_a_dump_that_fails_leaves_the_next_one_alone(tmp_path: Path) -> None:
    (tmp_path / "anthropic").mkdir()
    (tmp_path / "anthropic" / "claude").write_text("in the way")
    with capture_logs(), dumps_at(tmp_path) as dumps:
        for model in ("claude", "other"):
            attempt = attempt_of(dumps, model=model)
            attempt.request(REQUEST, b"{}")
            attempt.close()
    assert len(list((tmp_path / "anthropic" / "other").iterdir())) == 1


def test_the_directory_stays_below_its_limit(tmp_path: Path) -> None:
    limit = 64 * 8192
    with written(Dumps.open(str(tmp_path), MIB, limit)) as dumps:
        for number in range(1, 301):
            attempt = dumps.attempt("anthropic", "claude", "", ID, number, 1_700_000_000_000 + number)
            attempt.request(REQUEST, b"x" * 6000)
            attempt.close()
    left = sorted(int(path.name.partition("-")[0]) for path in tmp_path.rglob("*.txt"))
    assert 40 < len(left) <= 66
    assert left == list(range(1_700_000_000_301 - len(left), 1_700_000_000_301))
