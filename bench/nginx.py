"""nginx from Debian as a plain relay with one worker: what Ostiary is compared with.

It does what a relay must do and nothing else: keep-alive to both sides, the provider's key put in, TLS to the upstream
verified. Nothing is logged or recorded. Tuned for this work: responses are passed on as they come (`proxy_buffering
off`, as one must for event streams), and request bodies stay in memory, where by default it writes those over 16 KB to a
file first. Its buffers for responses are of its own size, a page; once more with a buffer that takes a burst of a stream at
once: what no file shows that people copy from each other, but the most that nginx can do.
"""

import getpass
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import children, machine
from .fake_upstream import Upstream
from .targets import PROVIDER_KEY, Target, provider_routes

INSTALL = "nginx is not installed; install it with: apt-get install --no-install-recommends nginx-light"

_CONFIG = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
worker_rlimit_nofile {open_files};
{user}
events {{ worker_connections 32768; }}
http {{
    access_log off;
    server_tokens off;
    tcp_nodelay on;
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    client_max_body_size 32m;
    client_body_buffer_size 16m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Authorization "Bearer {key}";
    proxy_set_header X-Api-Key "{key}";
    proxy_buffering off;
    proxy_read_timeout 600s;
    upstream plain {{
        server 127.0.0.1:{plain_port};
        keepalive 2048;
        keepalive_requests 1000000000;
    }}
    upstream tls {{
        server 127.0.0.1:{tls_port};
        keepalive 2048;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{listen_plain} backlog=4096;
        location / {{ proxy_pass http://plain; }}
    }}
    server {{
        listen 127.0.0.1:{listen_large} backlog=4096;
        proxy_buffer_size 64k;
        proxy_buffers 8 64k;
        proxy_busy_buffers_size 64k;
        location / {{ proxy_pass http://plain; }}
    }}
    server {{
        listen 127.0.0.1:{listen_tls} backlog=4096;
        location / {{
            proxy_pass https://tls;
            proxy_ssl_server_name on;
            proxy_ssl_name localhost;
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {ca_file};
            proxy_ssl_session_reuse on;
        }}
    }}
}}
"""


def binary() -> str | None:
    """nginx, also where an unprivileged user's PATH does not lead."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Relays:
    """One worker, the same process, by the port."""

    plain: Target
    tls: Target
    """To the TLS upstream."""
    large: Target
    """With a buffer that holds a whole burst of a stream, so that one write passes it on."""


@contextmanager
def nginx(folder: Path, upstream: Upstream, cores: machine.Cores) -> Iterator[Relays]:
    program = binary()
    if program is None:
        raise children.StartError(INSTALL)
    ports = children.free_port(), children.free_port(), children.free_port()
    config = folder / "nginx.conf"
    config.write_text(
        _CONFIG.format(
            folder=folder,
            open_files=machine.open_files(),
            user=f"user {getpass.getuser()};" if getpass.getuser() == "root" else "",
            key=PROVIDER_KEY,
            plain_port=upstream.plain_port,
            tls_port=upstream.tls_port,
            listen_plain=ports[0],
            listen_tls=ports[1],
            listen_large=ports[2],
            ca_file=upstream.ca_file,
        )
    )
    log = folder / "nginx.log"
    with children.running([program, "-p", str(folder), "-c", str(config)], pinned=cores.under_test, log=log) as master:
        # It listens before there is a worker, and a worker has its name only after a while.
        children.wait_until(lambda: children.listens(ports[0]) and len(_workers(master.pid)) == 1, master, log, 20)
        workers = _workers(master.pid)
        for pid in workers:
            machine.pin(pid, cores.under_test)
        names = ("nginx", "nginx, TLS upstream", "nginx, 64 KB buffer")
        yield Relays(*(Target(*place, provider_routes(), workers) for place in zip(names, ports, strict=True)))


def _workers(master: int) -> tuple[int, ...]:
    return tuple(pid for pid in machine.children(master) if "worker process" in machine.command_line(pid))
