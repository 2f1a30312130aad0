"""The fake provider as the upstream of all targets, plain and TLS: two processes that take turns on one core.

Where that core is theirs the one that is asked polls, and the other is halted.
"""

import os
import signal
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
    pids: tuple[int, int]
    """Of the plain one and of the TLS one."""
    polls: bool

    def direct(self) -> Target:
        """The upstream itself, as the baseline of latency and the proof that the load is not the limit."""
        return Target("direct", self.plain_port, provider_routes(), self.pids[:1])

    @contextmanager
    def over_tls(self) -> Iterator[None]:
        """The TLS one has the core and the plain one is halted; else it is the other way round."""
        plain, tls = self.pids
        if self.polls:
            os.kill(plain, signal.SIGSTOP)
            os.kill(tls, signal.SIGCONT)
        try:
            yield
        finally:
            if self.polls:
                os.kill(tls, signal.SIGSTOP)
                os.kill(plain, signal.SIGCONT)


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
    ports = children.free_port(), children.free_port()
    if cores.pinned:
        program, tls_files = ["bench.polling"], [str(chain), str(key)]
    else:
        program, tls_files = ["ostiary.fake", "--listen"], ["--tls-cert-file", str(chain), "--tls-key-file", str(key)]
    with ExitStack() as stack:
        pids = []
        for port, files in zip(ports, ([], tls_files), strict=True):
            command = [sys.executable, "-m", *program, f"127.0.0.1:{port}", *files]
            log = folder / f"fake-{port}.log"
            started = stack.enter_context(children.running(command, pinned=cores.upstream, log=log))
            children.wait_until(partial(children.listens, port), started, log, 20)
            pids.append(started.pid)
        plain, tls = pids
        if cores.pinned:
            os.kill(tls, signal.SIGSTOP)
            stack.callback(os.kill, tls, signal.SIGCONT)  # before it is told to end
        yield Upstream(*ports, ca, (plain, tls), cores.pinned)
