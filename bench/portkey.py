"""Portkey's gateway beside Ostiary, when it is asked for: what users would pick instead, in JavaScript.

It is installed with npm into a directory of its own, outside the tree, and kept there for the next run. Its own range of
versions takes in releases of `@hono/node-server` with which it answers streams with an error (Portkey-AI/gateway#1389),
so the versions are named here.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import children, machine
from .fake_upstream import Upstream
from .targets import PROVIDER_KEY, Route, Target, UnavailableError, cache_folder

_PACKAGES = ("@portkey-ai/gateway@1.15.2", "@hono/node-server@1.13.8", "@hono/node-ws@1.2.0", "hono@4.9.7")
_INSTALL_SECONDS = 240
_START_SECONDS = 30.0

_LOOPBACK = """
const net = require('node:net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  return typeof port === 'object' ? listen.call(this, { ...port, host: '127.0.0.1' }, ...rest)
                                  : listen.call(this, port, '127.0.0.1', ...rest.filter((one) => typeof one === 'function'));
};
"""
"""Loaded before it: it has no setting for the address it listens at, and a benchmark is for this machine alone."""


@contextmanager
def portkey(folder: Path, upstream: Upstream, cores: machine.Cores) -> Iterator[Target]:
    """One process, without plugins, cache or retries. Raises `UnavailableError`."""
    node = shutil.which("node")
    if node is None:
        raise UnavailableError("it needs Node.js, which is not installed")
    program = _installed()
    port = children.free_port()
    loopback = folder / "loopback.cjs"
    loopback.write_text(_LOOPBACK)
    log = folder / "portkey.log"
    command = [node, "--require", str(loopback), str(program), f"--port={port}", "--headless"]
    env = os.environ | {"NODE_ENV": "production"}
    with children.running(command, pinned=cores.under_test, log=log, env=env) as process:
        try:
            children.wait_until(lambda: children.listens(port), process, log, _START_SECONDS)
        except children.StartError as exc:
            raise UnavailableError(str(exc)) from exc
        machine.pin(process.pid, cores.under_test)
        headers = {
            "Authorization": f"Bearer {PROVIDER_KEY}",
            "X-Portkey-Provider": "openai",
            "X-Portkey-Custom-Host": f"http://127.0.0.1:{upstream.plain_port}/v1",
        }
        yield Target("Portkey", port, {"openai": Route("", headers)}, (process.pid,))


def version() -> str:
    about = json.loads((_package() / "package.json").read_text())
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return f"{about['version']} on Node.js {node.removeprefix('v')}"


def _folder() -> Path:
    return cache_folder() / "portkey"


def _package() -> Path:
    return _folder() / "node_modules" / "@portkey-ai" / "gateway"


def _installed() -> Path:
    program = _package() / "build" / "start-server.js"
    marker = _folder() / "installed.json"
    wanted = json.dumps(_PACKAGES)
    if program.exists() and marker.exists() and marker.read_text() == wanted:
        return program
    npm = shutil.which("npm")
    if npm is None:
        raise UnavailableError("it is installed with npm, which is not there")
    _folder().mkdir(parents=True, exist_ok=True)
    # No scripts of packages: what it needs to run is built already.
    command = [npm, "install", "--prefix", str(_folder()), "--no-audit", "--no-fund", "--ignore-scripts", *_PACKAGES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired as exc:
        raise UnavailableError(f"installing it took more than {_INSTALL_SECONDS} s") from exc
    if done.returncode or not program.exists():
        raise UnavailableError(f"installing it failed: {done.stderr.strip()[-300:]}")
    marker.write_text(wanted)
    return program
