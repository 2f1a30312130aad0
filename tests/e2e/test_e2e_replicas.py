"""A running server reports itself: `GET /api/v2/ai-gateway/replicas` and `ostiary gateway status`."""

import json
import os
import signal
import subprocess
from typing import Any

from ostiary import __version__
from tests.support.fake_provider import FakeProvider
from tests.support.server import OSTIARY, OWNER_TOKEN, Server, StartServer, eventually


def replicas(server: Server) -> dict[str, Any]:
    """By a connection of its own: the one before may have been to a worker that was killed."""
    with server.client() as client:
        return dict(client.get("/api/v2/ai-gateway/replicas").raise_for_status().json())


def replica(server: Server) -> dict[str, Any]:
    (found,) = replicas(server)["replicas"]
    return dict(found)


def status(server: Server, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"OSTIARY_URL": server.url, "OSTIARY_TOKEN": OWNER_TOKEN}
    command = [*OSTIARY, "gateway", "status", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


def test_a_server_reports_its_workers_and_what_they_serve(start_server: StartServer, own_fake: FakeProvider) -> None:
    server = start_server(own_fake, "--workers", "2")

    def complete() -> dict[str, Any] | None:
        page = replicas(server)
        for one in page["replicas"]:
            if [worker["revision"] for worker in one["workers"]] == [page["revision"]] * 2 and len(
                one["journals"]
            ) == 2:
                return dict(one)
        return None

    shown = eventually(complete, what="two workers that serve")
    assert (shown["state"], shown["mode"], shown["build"]) == ("live", "embedded", __version__)
    assert {worker["pid"] for worker in shown["workers"]} == set(server.children("worker"))
    assert all(journal["live"] for journal in shown["journals"])

    killed, *_ = server.children("worker")
    os.kill(killed, signal.SIGKILL)

    def joined_anew() -> bool:
        workers = server.children("worker")
        return len(workers) == 2 and killed not in workers and server.metric("ostiary_link_workers") == 2

    eventually(joined_anew, within=30, what="a new worker has joined the link")
    eventually(
        lambda: (
            {worker["pid"] for worker in replica(server)["workers"]} == set(server.children("worker"))
            and len(replica(server)["workers"]) == 2
        ),
        within=8,  # before the next regular report is due
        what="the new worker",
    )

    answered = status(server)
    assert answered.returncode == 0, answered.stderr
    header, line = answered.stdout.splitlines()
    assert header.split() == ["HOST", "ID", "STATE", "MODE", "BUILD", "WORKERS", "REVISION", "UNSHIPPED", "SEEN"]
    assert shown["replica_id"][:8] in line
    assert json.loads(status(server, "--json").stdout)["replicas"][0]["replica_id"] == shown["replica_id"]

    assert server.stop() == 0, server.tail()
    server.start()
    eventually(lambda: len(replica(server)["workers"]) == 2, what="the same replica after a restart")
    assert replica(server)["replica_id"] == shown["replica_id"]
