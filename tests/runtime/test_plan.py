from itertools import count
from pathlib import Path

import msgspec
import pytest

from ostiary.core.settings import TLSFiles
from ostiary.runtime.plan import Address, completed, public_url
from tests.support.supervised import server_plan


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:4000", Address("127.0.0.1", 4000)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:65535", Address("::1", 65535)),
    ],
)
def test_address_is_read_and_written_alike(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", ":4000", "4000", "host", "host:", "host:65536", "host:-1", "::1:4000", "[::1]", "h:٣"]
)
def test_what_is_no_address_is_refused_with_itself_in_the_message(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not HOST:PORT|has no port") as error:
        Address.parse(text)
    assert repr(text) in str(error.value)


def test_both_planes_get_the_secrets_and_the_address_of_this_start(tmp_path: Path) -> None:
    numbers = count()
    plan = completed(
        server_plan(tmp_path), control_port=5001, fake=Address("127.0.0.1", 4011), draw=lambda: f"drawn-{next(numbers)}"
    )
    assert plan.control is not None
    assert plan.gateway.control_url == plan.link.control_url == "http://127.0.0.1:5001"
    assert plan.gateway.front_door_secret == plan.control.front_door_secret
    assert plan.link.gateway_key == plan.control.gateway_key
    assert plan.control.gateway_key != plan.control.front_door_secret
    assert [(p.name, p.base_url) for p in plan.control.demo_providers] == [
        ("demo-openai", "http://127.0.0.1:4011/v1"),
        ("demo-anthropic", "http://127.0.0.1:4011"),
    ]
    assert "drawn" not in repr(plan)


def test_a_plan_without_control_plane_is_taken_as_it_is(tmp_path: Path) -> None:
    plan = server_plan(tmp_path, control=None)
    assert completed(plan, control_port=0, fake=None, draw=lambda: pytest.fail("no secret is needed")) is plan


def test_public_url_names_an_address_that_can_be_called(tmp_path: Path) -> None:
    plan = server_plan(tmp_path, listen=Address("0.0.0.0", 4000))
    assert public_url(plan) == "http://127.0.0.1:4000"
    tls = msgspec.structs.replace(plan.gateway, tls=TLSFiles("cert.pem", "key.pem"))
    assert public_url(msgspec.structs.replace(plan, listen=Address("::1", 4000), gateway=tls)) == "https://[::1]:4000"
