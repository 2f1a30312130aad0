"""`ostiary doctor` against a running server: all in order, and then not."""

import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ostiary.cli.doctor import gateways, providers
from ostiary.cli.root import run
from tests.support.fake_provider import FakeProvider
from tests.support.gateway import StartGateway, new_key, start_gateway
from tests.support.load import CHAT, Load
from tests.support.server import OSTIARY, OWNER_TOKEN, PROVIDER_KEY, Server, StartServer, eventually

__all__ = ["start_gateway"]

LATER = """
import datetime
_real = datetime.datetime
class datetime_of_this_machine(_real):
    @classmethod
    def now(cls, tz=None):
        return _real.now(tz) + datetime.timedelta(hours=1)
datetime.datetime = datetime_of_this_machine
"""
"""A `sitecustomize` by which a command's clock is an hour ahead."""

Told = dict[str, Any]


def environment(server: Server, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OSTIARY_", "CODER_"))}
    return kept | {"OSTIARY_URL": server.url, "OSTIARY_TOKEN": OWNER_TOKEN, "OSTIARY_JOURNAL_MAX_BYTES": "1MiB"} | more


def doctor(server: Server, *arguments: str, status: int = 0, **more: str) -> Told:
    command = [*OSTIARY, "doctor", "--json", "--data-dir", str(server.data_dir), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=90, env=environment(server, **more), check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    told: Told = json.loads(done.stdout)
    return told


def texts(told: Told, *statuses: str, group: str = "") -> list[str]:
    return [
        one["text"] for one in told["findings"] if one["status"] in statuses and (not group or one["group"] == group)
    ]


def reported(server: Server, gateways: int = 1, workers: int = 1) -> None:
    """Waits until so many gateways have told of so many workers each."""

    def told() -> bool:
        replicas = server.get("/api/v2/ai-gateway/replicas")["replicas"]
        return [len(one["workers"]) for one in replicas] == [workers] * gateways

    eventually(told, what=server.tail())


def test_a_server_in_order_has_nothing_wrong_and_only_a_wrong_clock_changes_that(
    start_server: StartServer, own_fake: FakeProvider, tmp_path: Path
) -> None:
    server = start_server(own_fake, "--workers", "2")
    reported(server, workers=2)
    told = doctor(server, "--call", "openai/gpt-5.4-mini", "--call", "anthropic/claude-haiku-5-5")
    assert not texts(told, "wrong", "warning", "unchecked"), told
    groups = {one["group"] for one in told["findings"]}
    assert groups == {
        *("server", "clocks", "database", "providers", "traffic", "gateways", "records", "machine", "settings")
    }
    traffic = "\n".join(texts(told, "ok", group="traffic"))
    for call in ("openai: a call of gpt-5.4-mini", "anthropic: a call of claude-haiku-5-5"):
        assert f"{call} is answered" in traffic
        assert f"{call} is recorded" in traffic
    assert "link up, 2 workers" in "\n".join(texts(told, "ok", group="gateways"))
    assert PROVIDER_KEY not in json.dumps(told)

    (tmp_path / "sitecustomize.py").write_text(LATER)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    (wrong,) = texts(doctor(server, status=1, PYTHONPATH=path), "wrong")
    assert wrong == "the control plane's clock is 60 minutes behind this machine's"


def test_files_keys_and_limits_of_a_running_server(start_server: StartServer, own_fake: FakeProvider) -> None:
    server = start_server(own_fake, "--workers", "1")
    own_fake.script_key(PROVIDER_KEY, "status=401")
    (server.data_dir / "vault.key").chmod(0o644)
    (worker,) = server.children("worker")
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (512, 512))
    told = doctor(server, "--call", "openai/gpt-5.4-mini", status=1)
    wrong = "\n".join(texts(told, "wrong"))
    assert "openai: key sk-p...6789 is refused" in wrong
    assert "openai: a call of gpt-5.4-mini answers 401" in wrong
    assert f"open to other users: {server.data_dir}/vault.key" in wrong
    assert "a worker may open 512 files" in wrong


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that stands still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_records_and_changes_that_a_link_does_not_pass_on(
    start_server: StartServer,
    own_fake: FakeProvider,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = start_server(own_fake, "--workers", "1")
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    arguments = ["doctor", "--json", "--call", "openai/gpt-5.4-mini", "--data-dir", str(server.data_dir)]

    def tell() -> Told:
        capsys.readouterr()
        run(arguments)
        told: Told = json.loads(capsys.readouterr().out)
        return told

    assert not texts(tell(), "wrong")  # and the worker knows the token from here on
    monkeypatch.setattr(gateways, "SETTLE_SECONDS", 1.0)
    monkeypatch.setattr(providers, "RECORD_SECONDS", 1.0)
    with stopped(server.children("link")[0]):
        assert server.owner.patch("/api/v2/ai/providers/anthropic", json={"display_name": "Claude"}).is_success
        wrong = "\n".join(texts(tell(), "wrong"))
    assert "openai: a call of gpt-5.4-mini is not in the record after 1 s" in wrong
    assert "serves the providers of revision" in wrong
    eventually(lambda: not texts(tell(), "wrong"), within=30, every=0.5, what=server.tail())


def test_a_gateway_without_room_for_a_call(start_server: StartServer, own_fake: FakeProvider) -> None:
    server = start_server(own_fake, "--workers", "1", "--max-concurrency", "1")
    with Load(server.url, OWNER_TOKEN, concurrency=1, total=1, kinds=(CHAT,), control="pace=100 events=600") as load:
        eventually(lambda: load.answering, what=load.summary())
        told = doctor(server, status=1)
        assert "openai: 1 key works" in "\n".join(texts(told, "ok"))
        assert any("through the gateway answers 503" in text for text in texts(told, "wrong")), told
        assert load.answering, "the call that takes all the room has lasted"
        server.kill()


def test_the_machine_of_a_gateway_elsewhere(
    start_server: StartServer, start_gateway: StartGateway, own_fake: FakeProvider
) -> None:
    server = start_server(own_fake, "--workers", "1")
    key = new_key(server)["key"]
    gateway = start_gateway(server.url, key)
    reported(server, gateways=2)
    there = {"OSTIARY_CONTROL_URL": server.url, "OSTIARY_GATEWAY_KEY": key}
    told = doctor(server, "--data-dir", str(gateway.data_dir), **there)
    assert not texts(told, "wrong", "warning", "unchecked"), told
    assert len(texts(told, "ok", group="gateways")) == 2
    assert any(str(gateway.data_dir) in text for text in texts(told, "ok", group="machine"))
    assert key not in json.dumps(told)
    gateway.kill()
    (gone,) = texts(doctor(server, "--data-dir", str(gateway.data_dir), **there), "warning")
    assert gone == f"no server or gateway runs on {gateway.data_dir}"
