"""What `ostiary doctor` sees on the machine itself, and of certificates: real files, real handshakes."""

import asyncio
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
import uvloop

from ostiary.cli.client import Client, Place
from ostiary.cli.doctor import certificates, machine, server
from ostiary.cli.doctor.findings import Finding, Status
from ostiary.control.certificates import EndpointCertificate
from ostiary.control.certificates import certificates as of_endpoints
from ostiary.core.secret import Secret
from ostiary.core.settings import ControlSettings
from tests.support.control_admin import control_settings
from tests.support.small_disk import mounted

ROOT = os.geteuid() == 0


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory as a server leaves it."""
    found = tmp_path / "data"
    (found / "journal" / "boot").mkdir(parents=True)
    for path in (found, found / "journal", found / "journal" / "boot"):
        path.chmod(0o700)
    for name, text in (("lock", ""), ("replica-id", "r-1"), ("vault.key", "x"), ("journal/boot/1.seg", "x" * 100)):
        path = found / name
        path.write_text(text)
        path.chmod(0o600)
    return found


def found(findings: Iterator[Finding] | list[Finding], *statuses: Status) -> list[Finding]:
    return [one for one in findings if one.status in (statuses or (Status.WARNING, Status.WRONG))]


def settings(**variables: str) -> Any:
    loaded, problems = machine.settings({f"OSTIARY_{name}": value for name, value in variables.items()})
    assert loaded is not None, problems
    return loaded


# --- files


def test_files_that_others_may_read_are_wrong_and_the_cure_mends_them(data_dir: Path) -> None:
    assert not found(machine.modes(data_dir))
    for name, mode in (("vault.key", 0o640), ("journal/boot", 0o701)):
        (data_dir / name).chmod(mode)
    (wrong,) = found(machine.modes(data_dir))
    assert (wrong.status, "vault.key" in wrong.text, "journal/boot" in wrong.text) == (Status.WRONG, True, True)
    subprocess.run(wrong.cure, shell=True, check=True)
    assert not found(machine.modes(data_dir))
    data_dir.chmod(0o755)
    assert found(machine.modes(data_dir))


@pytest.mark.skipif(not ROOT, reason="only root may give files away")
def test_files_of_another_user_are_wrong_but_those_of_postgresql(data_dir: Path) -> None:
    pg = data_dir / "pg"
    (pg / "data").mkdir(parents=True, mode=0o700)
    pg.chmod(0o700)
    for path in (pg, pg / "data"):
        os.chown(path, 12345, 12345)
    data_dir.chmod(0o711)
    assert not found(machine.modes(data_dir))
    os.chown(data_dir / "vault.key", 12345, 12345)
    os.chown(pg / "data", 0, 0)
    (wrong,) = found(machine.modes(data_dir))
    assert (wrong.status, "vault.key" in wrong.text, "pg/data" in wrong.text) == (Status.WRONG, True, True)


@pytest.mark.skipif(not ROOT, reason="as root another user can be had")
def test_another_user_is_told_that_the_directory_is_closed(data_dir: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from ostiary.cli.doctor import machine; "
        "os.setgroups([]); os.setgid(12345); os.setuid(12345); "
        "[print(one.status, one.text) for one in machine.directory(Path(sys.argv[1]), None, None)]"
    )
    for path in data_dir.parents:
        if path.owner() == "root" and path != Path("/") and path.stat().st_mode & 0o001 == 0:
            path.chmod(0o711)
    done = subprocess.run([sys.executable, "-c", code, data_dir], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"unchecked .*/data/lock is closed to this user, as it should be\n", done.stdout), done.stdout


def test_a_directory_that_is_none_or_of_another_server(data_dir: Path, tmp_path: Path) -> None:
    (unchecked,) = machine.directory(tmp_path / "none", None, None)
    assert unchecked.status is Status.UNCHECKED
    stranger = f"the gateway of {data_dir} does not report to this server"
    assert stranger in [one.text for one in found(machine.directory(data_dir, None, lambda _id: False))]
    for known in (None, lambda replica_id: replica_id == "r-1"):
        assert stranger not in [one.text for one in found(machine.directory(data_dir, None, known))]


def test_damage_that_was_set_aside_is_a_warning(data_dir: Path) -> None:
    assert not found(machine.damage(data_dir))
    (data_dir / "journal" / "b-1.seg.damaged").touch()
    (warning,) = machine.damage(data_dir)
    assert warning.status is Status.WARNING


# --- room and limits


def test_journals_that_may_outgrow_the_disk_are_a_warning(data_dir: Path) -> None:
    small = settings(WORKERS="1", JOURNAL_MAX_BYTES="1MiB")
    assert not found(machine.room(data_dir, small))
    (warning,) = machine.room(data_dir, settings(WORKERS="256", JOURNAL_MAX_BYTES="1024GiB"))
    assert (warning.status, "OSTIARY_JOURNAL_MAX_BYTES" in warning.cure) == (Status.WARNING, True)


def test_a_disk_that_is_full_is_wrong(data_dir: Path) -> None:
    with mounted(data_dir / "journal", 4):
        (wrong,) = machine.room(data_dir, settings())
        assert (wrong.status, "4 MiB free" in wrong.text) == (Status.WRONG, True)


@contextmanager
def supervisor_with_worker(limit: int, opened: int = 0) -> Iterator[int]:
    """Two processes that look like a supervisor and its worker; gives the pid of the first."""
    worker = f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit})); "
    worker += f"held = [open('/dev/null') for _ in range({opened})]; print('up', flush=True); sys.stdin.read()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}, 'ostiary.runtime.child worker'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    try:
        yield process.pid
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(20)


def test_limits_of_open_files_are_those_of_the_workers(data_dir: Path) -> None:
    for limit, statuses in ((20000, [Status.OK]), (2000, [Status.WARNING]), (512, [Status.WRONG])):
        with supervisor_with_worker(limit) as pid:
            assert [one.status for one in machine.limits(data_dir, str(pid))] == statuses
    with supervisor_with_worker(512, opened=450) as pid:
        assert [one.status for one in machine.limits(data_dir, str(pid))] == [Status.WRONG, Status.WRONG]


def test_a_directory_on_which_nothing_runs_is_a_warning(data_dir: Path) -> None:
    for holder in ("", "0", "nonsense", str(2**22 + 1)):
        assert [one.status for one in machine.limits(data_dir, holder)] == [Status.WARNING]


# --- certificates


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return authority, path


@contextmanager
def speaking_tls(authority: trustme.CA, lasts: timedelta) -> Iterator[int]:
    """A port on which one certificate after the other is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost", not_after=datetime.now(UTC) + lasts).configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    plain, _ = listening.accept()
                except OSError:
                    return
                try:
                    with plain, context.wrap_socket(plain, server_side=True) as secured:
                        secured.recv(1)
                except OSError:
                    continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.mark.parametrize(
    ("lasts", "status"), [(timedelta(days=90), Status.OK), (timedelta(days=5), Status.WARNING), (-timedelta(1), None)]
)
def test_the_servers_certificate(
    authority: tuple[trustme.CA, Path], lasts: timedelta, status: Status | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority[1]))
    with speaking_tls(authority[0], lasts) as port:
        (one,) = certificates.listener(f"https://localhost:{port}")
    # every request of the doctor has failed by then for the same reason
    assert one.status is (status or Status.UNCHECKED)
    assert status is not None or "certificate has expired" in one.text
    assert not list(certificates.listener("http://localhost"))


def test_a_server_whose_certificate_has_expired_is_wrong_and_not_asked_further(
    authority: tuple[trustme.CA, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority[1]))
    with speaking_tls(authority[0], -timedelta(days=1)) as port:
        place = Place(f"https://localhost:{port}", Secret("ost_nobody"), "the test", "the test")
        with Client(place) as client:
            reached = server.Reached(client)
    (wrong,) = reached.findings
    assert (wrong.status, reached.usable) == (Status.WRONG, False)
    assert "certificate has expired" in wrong.text


Loop = Callable[[Any], Any]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_certificates_of_providers(authority: tuple[trustme.CA, Path], tmp_path: Path, run: Loop) -> None:
    trusting = control_settings(Secret(""), tmp_path, ca_file=str(authority[1]))

    def ask(settings: ControlSettings, *urls: str) -> list[EndpointCertificate]:
        named = [(f"p{number}", url) for number, url in enumerate(urls)]
        answer: list[EndpointCertificate] = run(of_endpoints(named, settings))
        return answer

    def judged(one: EndpointCertificate) -> Finding:
        return certificates.endpoint(msgspec.to_builtins(one), datetime.now(UTC))

    with (
        speaking_tls(authority[0], timedelta(days=90)) as good,
        speaking_tls(authority[0], timedelta(days=2)) as late,
        speaking_tls(authority[0], -timedelta(days=1)) as expired,
    ):
        urls = [f"https://127.0.0.1:{port}/v1" for port in (good, late, expired)]
        shown = ask(trusting, *urls, urls[0], "http://127.0.0.1:1/v1", "https://169.254.169.254", "none")
        assert [one.providers for one in shown] == [("p0", "p3"), ("p1",), ("p2",), ("p5",)]
        statuses = [judged(one).status for one in shown]
        assert statuses == [Status.OK, Status.WARNING, Status.WRONG, Status.WRONG]
        assert "expired" in shown[2].problem
        assert "link-local or cloud-metadata" in shown[3].problem
        (untrusted,) = ask(control_settings(Secret(""), tmp_path), urls[0])
        assert "not accepted" in untrusted.problem
    with pytest.raises(ValueError, match="ca_file"):
        ask(control_settings(Secret(""), tmp_path, ca_file=str(tmp_path / "none.pem")), urls[0])
