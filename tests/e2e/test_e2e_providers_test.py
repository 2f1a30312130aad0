"""`ostiary providers test NAME` against a running server."""

import json
import os
import subprocess

from tests.support.server import OSTIARY, OWNER_TOKEN, PROVIDER_KEY, Server


def run(server: Server, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"OSTIARY_URL": server.url, "OSTIARY_TOKEN": OWNER_TOKEN}
    command = [*OSTIARY, "providers", "test", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


def test_every_key_is_tried_by_the_server(server: Server) -> None:
    for name, called in (("openai", "/v1/models"), ("anthropic", "/v1/models")):
        done = run(server, name)
        assert done.returncode == 0, done.stderr
        header, line = done.stdout.splitlines()
        assert header.split() == ["KEY", "RESULT", "TOOK", "WHY", "ID"]
        assert line.split()[:2] == ["sk-p...6789", "works"]
        assert called in done.stderr
        assert PROVIDER_KEY not in done.stdout + done.stderr
    answer = json.loads(run(server, "openai", "--json").stdout)
    assert answer["keys"][0]["status_code"] == 200
    assert run(server, "missing").returncode != 0
    made = server.owner.post(
        "/api/v2/ai/providers",
        json={
            "type": "openai",
            "name": "half-broken",
            "base_url": f"{server.fake.url if server.fake else ''}/v1",
            "api_keys": [PROVIDER_KEY, "sk-revoked-0123456789abcdef"],
        },
    )
    assert made.status_code == 201, made.text
    done = run(server, "half-broken")
    assert done.returncode == 1
    assert [line.split()[1] for line in done.stdout.splitlines()[1:]] == ["works", "refused"]
    server.owner.delete("/api/v2/ai/providers/half-broken")
