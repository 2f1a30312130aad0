"""Recorded provider traffic comes out of the fake provider byte for byte, however it is torn."""

import asyncio
from pathlib import Path

import h11
import pytest
import uvloop

from ostiary.fake import serve
from ostiary.fake.replay import Recording

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
PATHS = {"anthropic": "/v1/messages", "chatcompletions": "/v1/chat/completions"}
RECORDED = sorted(FIXTURES.glob("**/*.txtar"))


def sections(file: Path) -> dict[str, bytes]:
    """The sections of a txtar file."""
    found: dict[str, bytes] = {}
    name = ""
    for line in file.read_bytes().splitlines(keepends=True):
        if line.startswith(b"-- ") and line.rstrip().endswith(b" --"):
            name = line.strip()[3:-3].decode()
            found[name] = b""
        elif name:
            found[name] += line
    return found


@pytest.mark.skipif(not RECORDED, reason="the shared recordings are not there")
@pytest.mark.parametrize("control", ["", "tear=7", "chunk=5", "framing=close"])
def test_recordings_are_replayed_byte_for_byte(control: str) -> None:
    async def run() -> int:
        replayed = 0
        async with await serve() as fake:
            for file in RECORDED:
                path = PATHS.get(file.parent.name, "/v1/responses")
                for name, body in sections(file).items():
                    if "streaming" not in name or body.startswith(b"HTTP/"):
                        continue
                    fake.provider.replays.add(
                        Recording(
                            path=path, body=body.decode(), control=control, stream=not name.startswith("non-"), times=1
                        )
                    )
                    assert await ask(fake.port, path, stream=not name.startswith("non-")) == body
                    replayed += 1
        return replayed

    assert uvloop.run(run()) > len(RECORDED)


async def ask(port: int, path: str, *, stream: bool) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}],"input":"x","stream":%b}' % (
        b"true" if stream else b"false"
    )
    client = h11.Connection(h11.CLIENT)
    headers = [("host", "x"), ("x-api-key", "k"), ("content-length", str(len(body)))]
    writer.write(client.send(h11.Request(method="POST", target=path, headers=headers)) or b"")
    writer.write(client.send(h11.Data(data=body)) or b"")
    client.send(h11.EndOfMessage())
    received = b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(await reader.read(1000))
        elif isinstance(event, h11.Data):
            received += event.data
        elif isinstance(event, h11.EndOfMessage):
            writer.close()
            return received
