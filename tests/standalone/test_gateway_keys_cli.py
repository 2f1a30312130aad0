"""`ostiary gateway keys` against a real server."""

import subprocess

from tests.support.gateway import StartGateway
from tests.support.server import OSTIARY, OWNER_TOKEN, Server, _environment


def ostiary(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = _environment(OSTIARY_URL=server.url, OSTIARY_TOKEN=OWNER_TOKEN)
    command = [*OSTIARY, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_keys_are_made_listed_and_deleted(server: Server, start_gateway: StartGateway) -> None:
    made = ostiary(server, "gateway", "keys", "create", "by-hand")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert len(key) == 43, "nothing else on standard output, so that it can go to a file"
    gateway = start_gateway(server.url, key)
    listed = ostiary(server, "gateway", "keys", "list").stdout
    assert "by-hand" in listed
    assert key[:11] in listed
    assert key not in listed
    again = ostiary(server, "gateway", "keys", "create", "by-hand")
    assert again.returncode == 1
    assert "unique" in again.stderr
    unasked = ostiary(server, "gateway", "keys", "delete", "by-hand")
    assert unasked.returncode != 0
    assert gateway.is_ready()
    assert ostiary(server, "gateway", "keys", "delete", "by-hand", "--yes").returncode == 0
    assert gateway.ended() != 0
    missing = ostiary(server, "gateway", "keys", "delete", "by-hand", "--yes")
    assert missing.returncode == 1
    assert "ostiary gateway keys list" in missing.stderr
