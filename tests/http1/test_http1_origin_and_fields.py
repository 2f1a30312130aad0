"""Where upstreams may be, and what of a head is sent on."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ostiary.http1.errors import HeadError
from ostiary.http1.fields import (
    CREDENTIALS,
    FRONT_DOOR_DROPPED,
    REQUEST_DROPPED,
    RESPONSE_DROPPED,
    kept_request_lines,
    kept_response_lines,
)
from ostiary.http1.head import parse_request_head, parse_response_head
from ostiary.http1.origin import Origin, bypasses_proxy, is_refused, parse_networks, split_base_url


@pytest.mark.parametrize(
    ("url", "origin", "path", "query", "authority"),
    [
        ("https://api.openai.com/v1/", Origin(True, "api.openai.com", 443), "/v1", "", "api.openai.com"),
        ("http://localhost:8080", Origin(False, "localhost", 8080), "", "", "localhost:8080"),
        ("https://x.test:443/a?b=c", Origin(True, "x.test", 443), "/a", "?b=c", "x.test"),
        ("http://[::1]:80/a/b", Origin(False, "::1", 80), "/a/b", "", "[::1]"),
        ("http://[fd00::1]:8000", Origin(False, "fd00::1", 8000), "", "", "[fd00::1]:8000"),
        ("https://b\u00fccher.test/", Origin(True, "xn--bcher-kva.test", 443), "", "", "xn--bcher-kva.test"),
        ("HTTPS://API.test", Origin(True, "api.test", 443), "", "", "api.test"),
    ],
)
def test_base_urls(url: str, origin: Origin, path: str, query: str, authority: str) -> None:
    assert split_base_url(url) == (origin, path, query)
    assert origin.authority == authority


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "x.test/v1",
        "//x.test",
        "https://",
        "https://user@x.test",
        "https://user:pw@x.test",
        "https://x.test/#a",
        "https://x.test/a b",
        "https://x.test/?a b",
        "https://x.test/\x01",
        "https://x.test/\u00e4",
        "https://x.test:0x50/",
        "https://x.test:99999/",
        "https://" + "a" * 70 + "\u00fc.test/",
    ],
)
def test_base_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        split_base_url(url)


REFUSED = ["169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "febf::1", "fd00:ec2::254", "fd20:ce::254"]
REFUSED += ["100.100.100.200", "168.63.129.16", "192.0.0.192", "::ffff:169.254.169.254", "64:ff9b::169.254.169.254"]
ALLOWED = ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "fd00::1", "8.8.8.8", "2606:4700::1", "0.0.0.0"]
ALLOWED += ["169.253.255.255", "169.255.0.0", "fec0::1", "::ffff:10.0.0.1", "64:ff9b::8.8.8.8", "100.100.100.201"]


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_never_connected_to(address: str) -> None:
    assert is_refused(address, ())


@pytest.mark.parametrize("address", ALLOWED)
def test_addresses_that_may_be_connected_to(address: str) -> None:
    assert not is_refused(address, ())


def test_what_is_refused_can_be_allowed_and_nothing_else_with_it() -> None:
    allowed = parse_networks(["169.254.169.254", "fe80::/16"])
    assert not is_refused("169.254.169.254", allowed)
    assert not is_refused("::ffff:169.254.169.254", allowed)
    assert not is_refused("64:ff9b::a9fe:a9fe", allowed)
    assert not is_refused("fe80::7", allowed)
    assert is_refused("169.254.169.253", allowed)
    assert is_refused("fe81::7", allowed)
    with pytest.raises(ValueError, match="metadata"):
        parse_networks(["10.0.0.0/8", "metadata.google.internal"])


@pytest.mark.parametrize(
    ("host", "no_proxy", "bypassed"),
    [
        ("api.test", "", False),
        ("api.test", "*", True),
        ("api.test", "api.test", True),
        ("API.test", "api.TEST", True),
        ("api.test", "api.test:8443", True),
        ("api.test", "api.test:443", False),
        ("api.test", "other, api.test ,x", True),
        ("a.api.test", "api.test", True),
        ("a.api.test", ".api.test", True),
        ("a.api.test", "*.api.test", True),
        ("evilapi.test", "api.test", False),
        ("api.test.evil", "api.test", False),
        ("api.test", "test", True),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("fd00::1", "fd00::/8", True),
        ("api.test", "10.0.0.0/8,not/a/network", False),
        ("localhost", "", True),
        ("127.0.0.1", "", True),
        ("::1", "", True),
        ("api.test", ",, ,", False),
    ],
)
def test_no_proxy(host: str, no_proxy: str, bypassed: bool) -> None:
    assert bypasses_proxy(host, 8443, no_proxy) is bypassed


def request(*lines: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: h\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def test_what_speaks_of_the_connection_or_to_us_is_not_sent_on() -> None:
    head = parse_request_head(
        request(
            b"Connection: keep-alive, X-Private",
            b"Keep-Alive: timeout=5",
            b"X-Private: 1",
            b"TE: trailers",
            b"Proxy-Authorization: Basic eA==",
            b"Via: 1.1 x",
            b"X-Forwarded-For: 1.2.3.4",
            b"X-Ostiary-Token: ost_1",
            b"Authorization: Bearer key",
            b"X-Api-Key: key",
            b"Cookie: a=b",
            b"Content-Length: 5",
            b"Accept:  text/event-stream ",
            b"anthropic-BETA: x",
        )
    )
    assert kept_request_lines(head, REQUEST_DROPPED | CREDENTIALS) == [
        b"Accept:  text/event-stream ",
        b"anthropic-BETA: x",
    ]


def test_the_control_plane_gets_no_word_of_a_client_about_who_asks() -> None:
    told = (b"X-Forwarded-For: 6.6.6.6", b"X-Request-Id: mine", b"X-Ostiary-Front-Door: guess", b"Accept: */*")
    assert kept_request_lines(parse_request_head(request(*told)), FRONT_DOOR_DROPPED) == [b"Accept: */*"]


@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_a_connection_option_cannot_take_the_framing_away(framing: bytes) -> None:
    option = b"Connection: " + framing.partition(b":")[0].lower() + b", close"
    assert framing in kept_request_lines(parse_request_head(request(option, framing)), FRONT_DOOR_DROPPED)
    answer = parse_response_head(b"HTTP/1.1 200 OK\r\n" + option + b"\r\n" + framing + b"\r\n\r\n")
    assert kept_response_lines(answer, RESPONSE_DROPPED) == [framing]


@given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=12)), max_size=4), st.booleans())
def test_what_is_sent_on_cannot_be_more_lines_than_were_read(
    fields: list[tuple[bytes, bytes]], is_request: bool
) -> None:
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
    assume(b"\r\n\r\n" not in b"\r\n" + lines)  # there the head ends
    try:
        if is_request:
            head = parse_request_head(b"GET / HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n")
            kept = kept_request_lines(head, REQUEST_DROPPED)
        else:
            answer = parse_response_head(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n")
            kept = kept_response_lines(answer, RESPONSE_DROPPED)
    except HeadError:
        return
    for line in kept:
        assert line.strip(b" \t")
        assert b":" in line
        assert not any(control in line for control in (b"\r", b"\n", b"\x00"))
