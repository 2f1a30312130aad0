"""Where a command finds its server and token, and how it fails when it does not get on with the server."""

import json
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ostiary.cli.client import DEFAULT_URL, Client, Login, Place, find_place, is_local, login_file, store_login
from ostiary.cli.failure import Failure
from ostiary.cli.root import run
from ostiary.core.secret import Secret

TOKEN = "ost_" + "t" * 43


class Answer:
    """What the server of a test answers next, and what it was asked."""

    def __init__(self) -> None:
        self.status, self.body, self.headers = 200, b"[]", {"content-type": "application/json"}
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []

    def give(self, status: int, body: Any, **headers: str) -> None:
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {"content-type": "application/json", **headers}


@pytest.fixture
def answer() -> Answer:
    return Answer()


@pytest.fixture
def url(answer: Answer) -> Iterator[str]:
    """A real HTTP server that gives `answer`."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            answer.asked.append((self.command, self.path, dict(self.headers), body))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(Place(url, Secret(TOKEN), "OSTIARY_URL", "OSTIARY_TOKEN")) as one:
        yield one


def write_owner_token(home: Path) -> None:
    (home / "data").mkdir(mode=0o700)
    (home / "data" / "owner-token").write_text("ost_owner\n")


def test_without_anything_there_is_no_token() -> None:
    with pytest.raises(Failure, match=r"no token for http://127.0.0.1:4000: run `ostiary login` or set OSTIARY_TOKEN"):
        find_place()


def test_the_owner_token_of_this_machine_is_used_and_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_owner_token(home)
    place = find_place()
    assert (place.url, place.token.reveal()) == (DEFAULT_URL, "ost_owner")
    captured = capsys.readouterr()
    assert "using the owner token" in captured.err
    assert captured.out == ""


def test_the_owner_token_never_goes_to_another_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_owner_token(home)
    monkeypatch.setenv("OSTIARY_URL", "https://ai.example.com")
    with pytest.raises(Failure, match=r"no token for https://ai\.example\.com"):
        find_place()


def test_the_token_of_a_login_goes_to_its_server_only(monkeypatch: pytest.MonkeyPatch) -> None:
    store_login(Login("https://ai.example.com", Secret(TOKEN)))
    assert find_place().token.reveal() == TOKEN
    monkeypatch.setenv("OSTIARY_URL", "https://other.example.com")
    with pytest.raises(Failure, match=r"no token for https://other\.example\.com"):
        find_place()


def test_the_environment_goes_before_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    store_login(Login("https://ai.example.com", Secret(TOKEN)))
    monkeypatch.setenv("OSTIARY_URL", "http://localhost:9/")
    monkeypatch.setenv("OSTIARY_TOKEN", " mine ")
    place = find_place()
    assert (place.url, place.token.reveal(), place.token_origin) == ("http://localhost:9", "mine", "OSTIARY_TOKEN")


def test_a_login_is_stored_for_its_owner_only_and_refused_when_others_can_read_it() -> None:
    path = store_login(Login(DEFAULT_URL, Secret(TOKEN)))
    assert path == login_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(Failure, match="chmod 600"):
        find_place()


@pytest.mark.parametrize("text", ["localhost:4000", "ftp://x", "http://user:pw@host", "http://host/?q=1", "http://"])
def test_what_is_no_server_address_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTIARY_URL", text)
    with pytest.raises(Failure, match="OSTIARY_URL must be a server's address"):
        find_place()


@pytest.mark.parametrize("token", ["ost_é", "ost_a\nost_b"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(Failure, match="the token of OSTIARY_TOKEN has a line break or") as caught:
        Client(Place("http://127.0.0.1:1", Secret(token), "OSTIARY_URL", "OSTIARY_TOKEN"))
    assert "ost_" not in caught.value.message


def test_loopback_is_local_and_names_that_look_like_it_are_not() -> None:
    assert is_local("http://127.0.0.1:4000")
    assert is_local("http://[::1]:4000")
    assert is_local("http://localhost:4000")
    assert not is_local("http://localhost.example.com")
    assert not is_local("http://127.0.0.1.example.com")
    assert not is_local("http://10.0.0.1")


def test_nobody_listening_says_what_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OSTIARY_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("OSTIARY_TOKEN", TOKEN)
    assert run(["providers", "list"]) == 1
    assert capsys.readouterr().err == (
        "ostiary: cannot reach http://127.0.0.1:1 (from OSTIARY_URL): connection refused; "
        "is `ostiary server` running? For another server set OSTIARY_URL\n"
    )


REFUSALS: list[tuple[int, Any, str]] = [
    (401, {"message": "The token is not valid."}, "The token is not valid: the token of OSTIARY_TOKEN was sent; run"),
    (403, {"message": "You may not do this.", "detail": "It takes the role owner."}, "You may not do this: It takes"),
    (
        400,
        {
            "message": "Invalid request.",
            "validations": [{"field": "name", "detail": "is required"}, {"field": "b", "detail": "c"}],
        },
        "Invalid request: name: is required; b: c",
    ),
    (
        400,
        {
            "message": "Bad name.",
            "detail": "Letters only",
            "validations": [{"field": "name", "detail": "Letters only."}],
        },
        "Bad name: name: Letters only",
    ),
    (500, b"<html>oops</html>", "answers 500 and is not the API of an Ostiary server"),
    (404, {"error": "x"}, "answers 404 and is not the API of an Ostiary server"),
    (200, b"<html>hello</html>", "is it an Ostiary server?"),
    (400, {"message": "bad\x1b[2J", "detail": ["not", "text"]}, "bad\N{REPLACEMENT CHARACTER}[2J"),
]


@pytest.mark.parametrize(("status", "body", "said"), REFUSALS, ids=[str(case[0]) for case in REFUSALS])
def test_a_refusal_is_one_line_with_the_cause(
    client: Client, answer: Answer, status: int, body: Any, said: str
) -> None:
    answer.give(status, body)
    with pytest.raises(Failure) as raised:
        client.get("/api/v2/x")
    assert said in raised.value.message
    assert "\n" not in raised.value.message
    assert TOKEN not in raised.value.message


def test_a_redirect_is_not_followed(client: Client, answer: Answer) -> None:
    answer.give(308, b"", location="http://evil.example/")
    with pytest.raises(Failure, match=r"sends us on to http://evil\.example/"):
        client.get("/api/v2/x")
    assert len(answer.asked) == 1


def test_a_long_list_is_read_page_by_page(client: Client, answer: Answer) -> None:
    answer.give(200, [{"id": f"{number}"} for number in range(1000)])
    assert len(client.every("/api/v2/x", "unused", limit=2500)) == 2500
    assert [path for _, path, _, _ in answer.asked] == [
        "/api/v2/x?limit=1000",
        "/api/v2/x?limit=1000&after_id=999",
        "/api/v2/x?limit=500&after_id=999",
    ]


def test_a_short_page_is_the_last_one(client: Client, answer: Answer) -> None:
    answer.give(200, {"count": 1, "results": [{"id": "1"}]})
    assert client.every("/api/v2/x", "results", q="a b") == [{"id": "1"}]
    assert [path for _, path, _, _ in answer.asked] == ["/api/v2/x?limit=1000&q=a+b"]


def test_a_name_cannot_leave_its_path_segment(url: str, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTIARY_URL", url)
    monkeypatch.setenv("OSTIARY_TOKEN", TOKEN)
    answer.give(200, {"username": "x", "status": "suspended"})
    assert run(["users", "suspend", "../tokens?x#y"]) == 0
    assert answer.asked[0][1] == "/api/v2/users/..%2Ftokens%3Fx%23y"


def test_no_proxy_of_the_environment_gets_a_local_request(
    client: Client, answer: Answer, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with Client(Place(url, Secret(TOKEN), "x", "x")) as one:
        assert one.get("/api/v2/x") == []


def test_a_login_is_tried_before_it_is_stored(
    home: Path, url: str, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    token_file = home / "token"
    token_file.write_text(f"{TOKEN}\n")
    answer.give(401, {"message": "The token is not valid."})
    assert run(["login", url, "--token-file", str(token_file)]) == 1
    assert not login_file().exists()
    answer.give(200, {"username": "alice", "role": "member"})
    assert run(["login", url, "--token-file", str(token_file)]) == 0
    assert "you are alice (member)" in capsys.readouterr().out
    assert find_place().url == url
    assert answer.asked[-1][2]["Authorization"] == f"Bearer {TOKEN}"
    assert run(["login", "--forget"]) == 0
    assert not login_file().exists()


def test_an_untrusted_certificate_says_how_to_trust_it_and_that_works(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssl

    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(str(home / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    place = Place(f"https://localhost:{server.server_port}", Secret(TOKEN), "OSTIARY_URL", "x")
    try:
        with (
            Client(place) as one,
            pytest.raises(Failure, match=r"not trusted: .*; name its CA with SSL_CERT_FILE=ca\.pem"),
        ):
            one.get("/")
        in_clear = Place(place.url.replace("https", "http"), place.token, place.url_origin, place.token_origin)
        with Client(in_clear) as one, pytest.raises(Failure, match="Then set OSTIARY_URL to https://…"):
            one.get("/")
        monkeypatch.setenv("SSL_CERT_FILE", str(home / "ca.pem"))
        with Client(place) as one, pytest.raises(Failure, match="answers 501"):
            one.get("/")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
