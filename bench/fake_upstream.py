"""The fake provider as the upstream of all targets: plain, polling where it has a core of its own, and TLS."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trustme

from . import children, machine
from .targets import Target, provider_routes


@dataclass(frozen=True)
class Upstream:
    plain_port: int
    tls_port: int
    ca_file: Path
    pids: tuple[int, ...]

    def direct(self) -> Target:
        """The upstream itself, as the baseline of latency and the proof that the load is not the limit."""
        return Target("direct", self.plain_port, provider_routes(), self.pids[:1])


@contextmanager
def upstream(folder: Path, cores: machine.Cores) -> Iterator[Upstream]:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    ca, chain, key = folder / "ca.pem", folder / "upstream.pem", folder / "upstream.key"
    authority.cert_pem.write_to_path(str(ca))
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(chain), append=True)
    certificate.private_key_pem.write_to_path(str(key))
    ca.chmod(0o644)
    plain, tls = children.free_port(), children.free_port()
    sleeping = [sys.executable, "-m", "ostiary.fake", "--listen"]
    polling = [sys.executable, "-m", "bench.polling", "127.0.0.1"]
    commands = {
        "plain": [*polling, str(plain)] if cores.pinned else [*sleeping, f"127.0.0.1:{plain}"],
        "tls": [*sleeping, f"127.0.0.1:{tls}", "--tls-cert-file", str(chain), "--tls-key-file", str(key)],
    }
    with ExitStack() as stack:
        pids = []
        for name, port, home in (("plain", plain, cores.upstream), ("tls", tls, cores.second)):
            log = folder / f"fake-{name}.log"
            started = stack.enter_context(children.running(commands[name], pinned=home, log=log))
            children.wait_until(partial(children.listens, port), started, log, 20)
            pids.append(started.pid)
        yield Upstream(plain, tls, ca, tuple(pids))
