"""Dumps of a running server (reference J.6 item 11): what was really sent, attempt by attempt, and no secret in it."""

import json
import re
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import APIS, CHAT, DATA_PLANE, MESSAGES, RESPONSES, Api, Person
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import Answer, ask, header_in
from tests.support.server import PROVIDER_KEY, Server, StartServer, eventually, open_directory

MASKED_KEY = f"{PROVIDER_KEY[:4]}...{PROVIDER_KEY[-4:]}".encode()
KEYS = {
    "sk-revoked-0123456789-abcdefgh": b"sk-r...efgh",
    "sk-limited-0123456789-ijklmnop": b"sk-l...mnop",
    "sk-working-0123456789-qrstuvwx": b"sk-w...uvwx",
}


@pytest.fixture(scope="module")
def dumper(fake: FakeProvider) -> Iterator[Person]:
    """On a server that dumps. It has `many` (three keys, of which the last one works) and `dead` (nobody listens) besides."""
    with open_directory() as directory, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        variables = {
            "OSTIARY_DUMP_DIR": str(directory / "dumps"),
            "OSTIARY_RETRY_5XX": "1",
            "OSTIARY_PROVIDER_2_TYPE": "openai",
            "OSTIARY_PROVIDER_2_NAME": "many",
            "OSTIARY_PROVIDER_2_BASE_URL": f"{fake.url}/v1",
            "OSTIARY_PROVIDER_2_KEYS": ",".join(KEYS),
            "OSTIARY_PROVIDER_3_TYPE": "openai",
            "OSTIARY_PROVIDER_3_NAME": "dead",
            "OSTIARY_PROVIDER_3_BASE_URL": f"http://127.0.0.1:{taken.getsockname()[1]}/v1",
            "OSTIARY_PROVIDER_3_KEY": PROVIDER_KEY,
        }
        running = Server(directory, fake, "--workers", "1", **variables).start()
        yield Person(running, "ann", running.new_token("ann"))
        running.kill()


def directory_of(person: Person) -> Path:
    return person.server.directory / "dumps"


def files_of(person: Person, request_id: str, expected: int, *ends: bytes) -> dict[str, bytes]:
    """The dumps of a request, by directory, attempt and kind, once there are so many and each of `ends` ends one of them."""
    pattern = re.compile(rf"\d{{13}}-{request_id}(-\d+\.(?:req|resp|req_error)\.txt)")
    base = directory_of(person)

    def found() -> dict[str, bytes] | None:
        named = [(path, pattern.fullmatch(path.name)) for path in base.rglob("*.txt")]
        files = {f"{path.parent.relative_to(base)}/{name[1]}": path.read_bytes() for path, name in named if name}
        whole = all(any(text.endswith(end) for text in files.values()) for end in ends)
        return files if len(files) == expected and whole else None

    files: dict[str, bytes] = eventually(found, what=f"{expected} dumps of {request_id}")
    return files


def dumped(person: Person, answer: Answer, directory: str, end: bytes = b"") -> tuple[bytes, bytes]:
    """Request and answer of the only attempt of a call. The answer's ends with `end`, or else as the client's did."""
    files = files_of(person, answer.interception_id, 2, end or answer.body)
    assert sorted(files) == [f"{directory}/-1.req.txt", f"{directory}/-1.resp.txt"]
    return files[f"{directory}/-1.req.txt"], files[f"{directory}/-1.resp.txt"]


def body_of(message: bytes) -> bytes:
    return message.partition(b"\r\n\r\n")[2]


def fields_of(message: bytes) -> dict[str, str]:
    lines = message.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def test_a_request_is_laid_out_as_it_was_written_and_its_secrets_are_masked(dumper: Person) -> None:
    body = (
        b'{"zeta":1.10,"model":"vendor/gpt-test","big":12345678901234567890123,"escaped":"\\u00e9\\/","none":[],'
        b'"messages":[{"role":"user","content":"caf\xc3\xa9"}],"again":1,"again":2,"e":1E+2}'
    )
    answer = dumper.call(
        CHAT.path(), body, {"X-Api-Key": dumper.token, "User-Agent": "odd/1", "X-Stainless-Lang": "js"}
    )
    assert answer.status == 200
    request, response = dumped(dumper, answer, "openai/vendor-gpt-test")
    assert body_of(request).decode() == (
        '{\n  "zeta": 1.10,\n  "model": "vendor/gpt-test",\n  "big": 12345678901234567890123,\n'
        '  "escaped": "\\u00e9\\/",\n  "none": [],\n  "messages": [\n    {\n      "role": "user",\n'
        '      "content": "café"\n    }\n  ],\n  "again": 1,\n  "again": 2,\n  "e": 1E+2\n}'
    )
    assert request.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    fields = fields_of(request)
    assert fields["authorization"] == f"Bearer {MASKED_KEY.decode()}"
    assert fields["content-length"] == str(len(body_of(request)))
    assert (fields["user-agent"], fields["x-stainless-lang"]) == ("odd/1", "js")
    assert "x-api-key" not in fields
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body_of(response) == answer.body


@pytest.mark.parametrize("api", [pytest.param(api, id=api.route.rpartition("/")[2]) for api in (RESPONSES, MESSAGES)])
def test_a_stream_is_dumped_as_it_came(dumper: Person, api: Api) -> None:
    model = "fake:crlf comments=3 unknown multiline tear=7"
    answer = dumper.call(api.path(), api.body("a stream to be kept " * 20, stream=True, model=model))
    assert (answer.status, answer.complete) == (200, True)
    _, response = dumped(dumper, answer, f"{api.provider}/{model}")
    assert len(answer.body) > 1000
    assert body_of(response) == answer.body


def test_what_is_withheld_from_the_client_is_in_the_dump(dumper: Person) -> None:
    answer = dumper.call(CHAT.path(), CHAT.body("count", stream=True))
    request, response = dumped(dumper, answer, "openai/test-model", b"data: [DONE]\n\n")
    assert json.loads(body_of(request))["stream_options"] == {"include_usage": True}
    assert b'"usage":' not in answer.body.replace(b'"usage":null', b"")
    without = re.sub(rb'data: [^\n]*"choices":\[\],[^\n]*\n\n', b"", body_of(response))
    assert without == answer.body
    assert without != body_of(response)


def test_a_compressed_stream_is_dumped_as_text(dumper: Person) -> None:
    body = MESSAGES.body("squeezed " * 30, stream=True, model="fake:encoding=gzip")
    answer = dumper.call(MESSAGES.path(), body, {"Accept-Encoding": "gzip"})
    assert answer.header("content-encoding") == "gzip"
    plain = zlib.decompress(answer.body, wbits=31)
    _, response = dumped(dumper, answer, "anthropic/fake:encoding=gzip", plain)
    assert body_of(response) == plain
    assert fields_of(response)["x-ostiary-dump"] == "the body is stored without its content coding"


def _ending(directory: Path, end: bytes) -> list[Path]:
    return [path for path in directory.rglob("*.txt") if path.read_bytes().endswith(end)]


def test_passthrough_is_named_by_its_path(dumper: Person) -> None:
    secret = "0123456789-a-secret-of-the-query"
    path = f"{DATA_PLANE}/anthropic/v1/models?limit=7&api_key={secret}"
    answer = ask(dumper.server.port, "GET", path, dumper.bearer)
    assert answer.status == 200
    request_id = answer.header("x-ostiary-request-id")
    assert request_id is not None
    directory = directory_of(dumper) / "anthropic" / "passthrough"
    (response,) = eventually(lambda: _ending(directory, answer.body), what="the dump of the answer")
    names = sorted(path.name for path in directory.iterdir())
    assert names[1] == response.name
    for name, kind in zip(names, ("req", "resp"), strict=True):
        assert re.fullmatch(rf"\d{{13}}-v1-models-{request_id[-4:]}\.{kind}\.txt", name)
    request = (directory / names[0]).read_bytes()
    assert request.startswith(b"GET /v1/models?limit=7&api_key=0123...uery HTTP/1.1\r\n")
    assert fields_of(request)["x-api-key"] == MASKED_KEY.decode()
    assert body_of(response.read_bytes()) == answer.body


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_an_upload_is_dumped_as_it_streamed_by(dumper: Person, framing: str) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-test\r\n--b\r\n'
    file = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + bytes(range(256)) * 2000
    form = part + file + b"\r\n--b--\r\n"
    headers = dumper.bearer | {"Content-Type": "multipart/form-data; boundary=b"}
    path = f"{DATA_PLANE}/openai/v1/audio/transcriptions"
    with dumper.connect() as connection:
        if framing == "length":
            connection.request("POST", path, headers, form)
        else:
            connection.send(connection.head("POST", path, headers | {"Transfer-Encoding": "chunked"}))
            for at in range(0, len(form), 100_000):
                piece = form[at : at + 100_000]
                connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            connection.send(b"0\r\n\r\n")
        answer = connection.answer()
    assert answer.status == 200
    files = files_of(dumper, answer.interception_id, 2, form, answer.body)
    assert body_of(files["openai/whisper-test/-1.req.txt"]) == form


def test_every_key_that_is_tried_has_a_pair_of_its_own(dumper: Person) -> None:
    answer = dumper.call("/many/v1/chat/completions", CHAT.body("third time lucky"))
    assert answer.status == 200
    files = files_of(dumper, answer.interception_id, 6, answer.body)
    for number, (key, status) in enumerate(zip(KEYS.values(), (b"401", b"429", b"200"), strict=True), 1):
        request = files[f"many/test-model/-{number}.req.txt"]
        assert b"\r\nAuthorization: Bearer " + key + b"\r\n" in request
        assert b"third time lucky" in body_of(request)
        response = files[f"many/test-model/-{number}.resp.txt"]
        assert response.startswith(b"HTTP/1.1 " + status + b" ")
        assert body_of(response)
    assert body_of(files["many/test-model/-3.resp.txt"]) == answer.body


def test_an_answer_that_nobody_saw_is_in_its_dump(dumper: Person, fake: FakeProvider) -> None:
    failing = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 8\r\n\r\na hiccup"
    fake.replay("/v1/chat/completions", model="failing-once", raw=failing, times=1)
    answer = dumper.call(CHAT.path(), CHAT.body(model="failing-once"))
    assert answer.status == 200
    files = files_of(dumper, answer.interception_id, 4, answer.body)
    assert body_of(files["openai/failing-once/-1.resp.txt"]) == b"a hiccup"
    assert body_of(files["openai/failing-once/-2.resp.txt"]) == answer.body


def test_an_answer_that_its_client_did_not_wait_for_says_so(dumper: Person) -> None:
    with dumper.connect() as connection:
        body = MESSAGES.body("leaving " * 50, stream=True, model="fake-hang-body")
        connection.request("POST", f"{DATA_PLANE}{MESSAGES.path()}", dumper.bearer, body)
        data = b""
        while b"content_block_delta" not in data:
            data += connection.read_some()
    id_ = header_in(data, "x-ostiary-interception-id")
    files = files_of(dumper, id_, 2, b"\n\n[ostiary: cut here: nobody waited for the rest]\n")
    assert b"content_block_delta" in files["anthropic/fake-hang-body/-1.resp.txt"]


def test_an_unreachable_provider_leaves_the_reason_beside_the_request(dumper: Person) -> None:
    answer = dumper.call("/dead/v1/chat/completions", CHAT.body("into the void"))
    assert answer.status == 502
    attempts = len(dumper.server.interception(answer.interception_id)["trace"]["attempts"])
    files = files_of(dumper, answer.interception_id, 2 * attempts, b'into the void"\n    }\n  ]\n}')
    for number in range(1, attempts + 1):
        assert b"into the void" in files[f"dead/test-model/-{number}.req.txt"]
        assert b"cannot connect to 127.0.0.1" in files[f"dead/test-model/-{number}.req_error.txt"]


@pytest.mark.parametrize("api", APIS)
def test_an_answer_that_breaks_off_ends_with_the_reason(dumper: Person, api: Api) -> None:
    answer = dumper.call(api.path(), api.body("unfinished " * 20, stream=True, model="fake-cut"))
    assert not answer.complete
    record = dumper.server.interception(answer.interception_id)
    message = record["error_message"].encode()
    files = files_of(dumper, answer.interception_id, 3, message + b"]\n", message + b"\n")
    kept, _, note = body_of(files[f"{api.provider}/fake-cut/-1.resp.txt"]).partition(b"\n\n[ostiary: cut here: ")
    assert kept == answer.body
    assert note == message + b"]\n"
    assert files[f"{api.provider}/fake-cut/-1.req_error.txt"] == message + b"\n"


def test_a_connection_that_ends_before_the_answer_leaves_the_reason(dumper: Person) -> None:
    """Of both attempts where the first one was over a connection that had been used before."""
    answer = dumper.call(MESSAGES.path(), MESSAGES.body(model="fake-cut-head"))
    assert answer.status == 502
    attempts = dumper.server.interception(answer.interception_id)["trace"]["attempts"]
    assert [one.get("reused_connection", False) for one in attempts] in ([False], [True, False])
    files = files_of(dumper, answer.interception_id, 2 * len(attempts))
    expected = [f"-{number}.{kind}.txt" for number in range(1, len(attempts) + 1) for kind in ("req", "req_error")]
    assert sorted(name.rpartition("/")[2] for name in files) == expected


@pytest.mark.parametrize(
    "model", ["../../../outside", "..", "/etc/ostiary", "a\0b", "x" * 20_000, "passthrough", "模型/七"]
)
def test_whatever_a_model_is_called_its_dumps_stay_in_the_directory(dumper: Person, model: str) -> None:
    around = sorted(dumper.server.directory.iterdir())
    answer = dumper.call(CHAT.path(), CHAT.body(model=model))
    files = files_of(dumper, answer.interception_id, 2)
    for name in files:
        assert re.fullmatch(r"openai/[^/\0\n]+/-1\.(req|resp)\.txt", name)
        assert not name.startswith("openai/passthrough/")
    assert sorted(dumper.server.directory.iterdir()) == around


def test_dumps_hold_no_secret_and_are_for_their_owner_only(dumper: Person, fake: FakeProvider) -> None:
    own = "sk-ant-of-my-own-0123456789-abcdefgh"
    headers = {"X-Ostiary-Token": dumper.token, "X-Api-Key": own, "Cookie": f"session={own}"}
    path = f"{DATA_PLANE}/anthropic/v1/messages"
    answer = ask(dumper.server.port, "POST", path, headers, MESSAGES.body("with a key of mine"))
    request, _ = dumped(dumper, answer, "anthropic/test-model")
    assert fields_of(request)["x-api-key"] == "sk-a...efgh"
    quoting = f"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n27\r\n{PROVIDER_KEY}\r\n0\r\n\r\n"
    fake.replay("/v1/chat/completions", model="quoting", raw=quoting, control="tear=5", times=1)
    quoted = dumper.call(CHAT.path(), CHAT.body(model="quoting"))
    assert quoted.body.decode() == PROVIDER_KEY
    assert body_of(dumped(dumper, quoted, "openai/quoting", MASKED_KEY)[1]) == MASKED_KEY
    secrets = [own, dumper.token, PROVIDER_KEY, *KEYS]
    for found in directory_of(dumper).rglob("*"):
        assert found.stat().st_mode & 0o077 == 0
        if found.is_file():
            text = found.read_bytes()
            assert [secret[:4] for secret in secrets if secret.encode() in text] == [], found


def test_the_oldest_dumps_go_and_a_stop_writes_what_is_left(start_server: StartServer, fake: FakeProvider) -> None:
    limit = 4 * 1024 * 1024
    with open_directory() as directory:
        base = directory / "dumps"
        variables = {
            "OSTIARY_DUMP_DIR": str(base),
            "OSTIARY_DUMP_MAX_BYTES": "4MiB",
            "OSTIARY_DUMP_FILE_MAX_BYTES": "1MiB",
        }
        server = start_server(fake, "--workers", "2", **variables)
        person = Person(server, "ann", server.new_token("ann"))
        answers = [person.call(CHAT.path(), CHAT.body("much to say " * 20_000)) for _ in range(30)]

        def is_there(call: Answer) -> bool:
            return any(call.interception_id in path.name for path in base.rglob("*.resp.txt"))

        eventually(lambda: all(is_there(call) for call in answers[-4:]), what="what was told before is written")
        last: Any = person.call(CHAT.path(), CHAT.body("the last words"))
        assert server.stop() == 0
        found = [path for path in base.rglob("*.txt") if path.is_file()]
        assert sum(path.stat().st_size for path in found) < limit * 1.25
        assert not any(answers[0].interception_id in path.name for path in found)
        (request,) = [path for path in found if last.interception_id in path.name and path.name.endswith("req.txt")]
        assert b"the last words" in request.read_bytes()
        (answer,) = [path for path in found if last.interception_id in path.name and path.name.endswith("resp.txt")]
        assert body_of(answer.read_bytes()) == last.body
