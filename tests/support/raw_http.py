"""An HTTP/1.1 client that hides nothing: bytes out, bytes in, and how the connection ended.

with RawConnection(server.port) as connection:
    connection.request("POST", "/path", {"Authorization": "Bearer …"}, b"{}")
    answer = connection.answer()

Its framing is its own, written for these tests alone: what Ostiary's engine forwards is judged by something else than itself.
"""

import json
import re
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """`wire` is the body as it came, framing included; `body` its payload. `complete`: its framing said that it ended."""

    status: int
    status_line: str
    headers: list[tuple[str, str]]
    wire: bytes
    body: bytes
    complete: bool

    def header(self, name: str) -> str | None:
        """The only value of a field, None when there is none."""
        values = [value for known, value in self.headers if known.lower() == name.lower()]
        assert len(values) < 2, f"{name} stands there {len(values)} times"
        return values[0] if values else None

    @property
    def interception_id(self) -> str:
        found = self.header("x-ostiary-interception-id")
        assert found, f"no interception id with {self.status_line}: {self.body[:500]!r}"
        return found

    def json(self) -> Any:
        return json.loads(self.body)


class RawConnection:
    """One connection to a loopback port."""

    def __init__(self, address: int | str, *, timeout: float = 20.0, host_header: str = "") -> None:
        port = address if isinstance(address, int) else urlsplit(address).port
        self.socket = socket.create_connection(("127.0.0.1", port or 80), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host = host_header or f"127.0.0.1:{port}"
        self._buffer = b""

    def __enter__(self) -> "RawConnection":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> None:
        """Send a request; a body gets its Content-Length."""
        length = {"Content-Length": str(len(body))} if body is not None else {}
        self.send(self.head(method, path, {**(headers or {}), **length}) + (body or b""))

    def read_some(self) -> bytes:
        """What is there next; empty at the end of the stream or after a reset."""
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        try:
            return self.socket.recv(65536)
        except ConnectionError:
            return b""

    def answer(self, *, to: str = "POST") -> Answer:
        """The next answer, interim ones too. `to` is the request's method."""
        head = self._until(b"\r\n\r\n")
        assert head.endswith(b"\r\n\r\n"), f"no whole response head: {head!r}"
        status_line, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        status = int(status_line.split()[1])
        fields = {name.lower(): value for name, value in headers}
        if to == "HEAD" or status < 200 or status in (204, 304):
            wire, body, complete = b"", b"", True
        elif fields.get("transfer-encoding") == "chunked":
            wire, body, complete = self._chunks()
        elif "content-length" in fields:
            wire = body = self._exactly(int(fields["content-length"]))
            complete = len(body) == int(fields["content-length"])
        else:
            wire = body = self._rest()
            complete = True
        return Answer(status, status_line, headers, wire, body, complete)

    def at_end(self) -> bool:
        """Whether the peer has closed the connection and nothing more came; waits for either."""
        data = self.read_some()
        self._buffer = data + self._buffer
        return not data

    def _until(self, mark: bytes) -> bytes:
        data = b""
        while mark not in data:
            more = self.read_some()
            if not more:
                return data
            data += more
        end = data.index(mark) + len(mark)
        self._buffer = data[end:] + self._buffer
        return data[:end]

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size > 0:
            data = self.read_some()
            if not data:
                break
            self._buffer = data[size:] + self._buffer
            parts.append(data[:size])
            size -= len(data)
        return b"".join(parts)

    def _rest(self) -> bytes:
        parts = []
        while data := self.read_some():
            parts.append(data)
        return b"".join(parts)

    def _chunks(self) -> tuple[bytes, bytes, bool]:
        wire: list[bytes] = []
        body: list[bytes] = []
        while True:
            line = self._until(b"\r\n")
            wire.append(line)
            if not line.endswith(b"\r\n"):
                return b"".join(wire), b"".join(body), False
            size = int(line.partition(b";")[0], 16)
            while not size and wire[-1] not in (b"\r\n", b""):  # trailers, and the empty line that ends them
                wire.append(self._until(b"\r\n"))
            if not size:
                return b"".join(wire), b"".join(body), wire[-1] == b"\r\n"
            data = self._exactly(size + 2)
            wire.append(data)
            body.append(data[:size])
            if len(data) < size + 2:
                return b"".join(wire), b"".join(body), False


def header_in(data: bytes, name: str) -> str:
    """The value of a field in a head that is read by hand."""
    found = re.search(rb"(?i)\r\n" + name.encode() + rb": ([^\r]+)", data)
    assert found, data
    return found[1].decode()


def ask(
    address: int | str, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Answer:
    """One request on a connection of its own."""
    with RawConnection(address) as connection:
        connection.request(method, path, headers, body)
        return connection.answer(to=method)
