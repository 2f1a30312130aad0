import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from ostiary.runtime.errors import StartError
from ostiary.runtime.listeners import Sockets, bound_address
from ostiary.runtime.plan import Address, FakePlan, ServerPlan
from tests.support.supervised import server_plan


@contextmanager
def _bound(plan: ServerPlan, patience: float = 0.0) -> Iterator[Sockets]:
    sockets = Sockets.bind(plan, patience)
    try:
        yield sockets
    finally:
        sockets.close()


def test_every_worker_has_a_socket_on_the_same_address(tmp_path: Path) -> None:
    with _bound(server_plan(tmp_path, workers=3)) as sockets:
        assert len(sockets.public) == 3
        assert len({bound_address(sock) for sock in sockets.public}) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_an_address_with_another_server_is_refused(tmp_path: Path, workers: int) -> None:
    with _bound(server_plan(tmp_path, workers=2)) as first:
        taken = bound_address(first.public[0])
        with pytest.raises(StartError, match=f"{taken} is in use by another program: .* --listen"):
            Sockets.bind(server_plan(tmp_path, workers=workers, listen=taken))


def test_a_connection_waits_in_the_socket_until_somebody_serves_it(tmp_path: Path) -> None:
    with _bound(server_plan(tmp_path, workers=1)) as sockets:
        address = bound_address(sockets.public[0])
        with socket.create_connection((address.host, address.port), timeout=5) as client:
            client.sendall(b"early")
            served, _ = sockets.public[0].accept()
            with served:
                served.settimeout(5)
                assert served.recv(5) == b"early"


def test_an_address_that_is_given_up_within_the_patience_is_taken(tmp_path: Path) -> None:
    dying = socket.create_server(("127.0.0.1", 0))
    threading.Timer(0.1, dying.close).start()
    plan = server_plan(tmp_path, workers=1, listen=bound_address(dying))
    with _bound(plan, patience=10.0) as sockets:
        assert bound_address(sockets.public[0]) == plan.listen


def test_the_fake_provider_goes_elsewhere_when_its_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        plan = server_plan(tmp_path, demo=True)
        plan = msgspec.structs.replace(plan, fake=FakePlan(listen=bound_address(taken)))
        with _bound(plan) as sockets:
            assert sockets.fake is not None
            assert bound_address(sockets.fake) != bound_address(taken)


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=re.escape("192.0.2.1:4000 is not an address of this machine")):
        Sockets.bind(server_plan(tmp_path, listen=Address("192.0.2.1", 4000)))


def test_without_control_plane_only_the_public_address_is_bound(tmp_path: Path) -> None:
    with _bound(server_plan(tmp_path, control=None, metrics_listen=None)) as sockets:
        assert (sockets.control, sockets.metrics, sockets.fake) == (None, None, None)
