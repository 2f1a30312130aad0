"""Settings' texts: what each kind takes, refuses and shows."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.config import values
from ostiary.config.values import Kind
from ostiary.core.secret import Secret
from ostiary.runtime.plan import Address


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("10m", 600), ("1h", 3600), ("60d", 60 * 86400), ("250ms", 0.25), ("1h30m", 5400), ("1.5s", 1.5)],
)
def test_durations_take_a_unit(text: str, seconds: float) -> None:
    assert values.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["5", "", "s", "5 s", "-5s", "5s!", "1e3s", "٣s", "5sec"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration from"):
        values.duration("0s", "60d").parse(text)


@given(st.integers(min_value=0, max_value=10**10))
def test_a_duration_survives_being_shown(milliseconds: int) -> None:
    shown = values.show_duration(milliseconds / 1000)
    assert values.parse_duration(shown) == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize(
    ("text", "size"), [("32MiB", 32 * 1024**2), ("1GB", 10**9), ("64kib", 65536), ("100", 100), ("7b", 7)]
)
def test_sizes_take_binary_and_decimal_units(text: str, size: int) -> None:
    assert values.parse_size(text) == size


@given(st.integers(min_value=0, max_value=2**45))
def test_a_size_survives_being_shown(size: int) -> None:
    assert values.parse_size(values.show_size(size)) == size


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("127.0.0.1:4000", Address("127.0.0.1", 4000), "127.0.0.1:4000"),
        ("[::1]:4000", Address("::1", 4000), "[::1]:4000"),
        (":4000", Address("0.0.0.0", 4000), "0.0.0.0:4000"),
        ("localhost:0", Address("localhost", 0), "localhost:0"),
    ],
)
def test_listening_addresses(text: str, address: Address, shown: str) -> None:
    assert values.listen().parse(text) == address
    assert str(address) == shown


@pytest.mark.parametrize("text", ["4000", "::1:4000", "[::1]", "host:", "host:65536", "a b:1", "http://x:1", "h:+1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="an address with its port"):
        values.listen().parse(text)


def test_only_an_optional_address_can_be_off() -> None:
    assert values.listen(optional=True).parse("off") is None
    with pytest.raises(ValueError, match="an address"):
        values.listen().parse("off")


def test_vault_keys_are_32_bytes_each_and_differ() -> None:
    one, two = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
    assert values.vault_keys().parse(f"{one}, {two}") == (Secret(one), Secret(two))
    for wrong in (one[:-4], "x" * 44, f"{one},{base64.b64encode(b'short').decode()}"):
        with pytest.raises(ValueError, match="openssl rand -base64 32"):
            values.vault_keys().parse(wrong)
    with pytest.raises(ValueError, match="given twice"):
        values.vault_keys().parse(f"{one},{one}")


@pytest.mark.parametrize("token", ["x" * 31, "x" * 40 + "\n.", "ключ" * 10])
def test_a_bootstrap_token_is_long_and_fits_a_header(token: str) -> None:
    with pytest.raises(ValueError, match="at least 32"):
        values.bootstrap_token().parse(token)


@pytest.mark.parametrize("url", ["mysql://h/d", "postgresql:/h", "h:5432", "postgres://"])
def test_a_database_url_is_of_postgresql(url: str) -> None:
    with pytest.raises(ValueError, match="PostgreSQL URL"):
        values.database_url().parse(url)


def test_a_proxy_is_shown_without_its_password() -> None:
    kind = values.proxy_url()
    shown = kind.show(kind.parse("http://someone:hunter2@proxy.example:3128"))
    assert shown == "http://***@proxy.example:3128"


KINDS = {
    "bool": values.boolean(),
    "choice": values.choice("a", "b"),
    "int": values.integer(1, 9),
    "duration": values.duration("1s", "1h"),
    "size": values.size("1KiB", "1GiB"),
    "listen": values.listen(),
    "networks": values.networks(),
    "file": values.readable_file(),
    "vault_keys": values.vault_keys(),
    "token": values.bootstrap_token(),
    "database": values.database_url(),
    "proxy": values.proxy_url(),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(text=st.text(max_size=40) | st.lists(st.integers()) | st.none() | st.booleans() | st.floats() | st.integers())
def test_a_wrong_value_raises_a_value_error_with_what_is_allowed(kind: Kind, text: object) -> None:
    try:
        kind.parse(text)
    except ValueError as error:
        assert str(error)
