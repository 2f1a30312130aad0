"""A provider that quotes a key does not get it into the record."""

import pytest

from ostiary.gateway.heads import without_credentials

KEY = "sk-0123456789-the-whole-key"


@pytest.mark.parametrize(
    "line", [f"Authorization: Bearer {KEY}", f"x-api-key: {KEY}", f"API-Key:{KEY}", f"Cookie: a=1; {KEY}"]
)
def test_a_quoted_credential_is_masked(line: str) -> None:
    head = f"POST /v1/messages HTTP/1.1\r\nHost: api.example.com\r\n{line}\r\nContent-Length: 2\r\n\r\n".encode()
    said = without_credentials(f"Incorrect API key provided: {KEY}. The Bearer of {KEY}.", head)
    assert said == "Incorrect API key provided: sk-0...-key. The Bearer of sk-0...-key."


def test_what_was_not_sent_as_a_credential_stays() -> None:
    head = b"POST / HTTP/1.1\r\nHost: api.example.com\r\nX-Note: api.example.com\r\nAuthorization: Bearer\r\n\r\n"
    assert without_credentials("api.example.com says Bearer", head) == "api.example.com says Bearer"
    assert without_credentials("no head was sent", b"") == "no head was sent"
