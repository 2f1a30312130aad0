"""Peers that poll: the fake provider and the load generator never sleep where each has a core of its own.

A write on loopback to a process that sleeps costs the writer an inter-processor interrupt, several µs on a virtual
machine. Only who leaves its peers idle pays it, so it would be charged to the slower side of a comparison; over a real
network nobody does. With polling peers it is charged to nobody.

`python -m bench.polling HOST:PORT [CERTIFICATE KEY]` is the fake provider that polls.
"""

import asyncio
import sys

import uvloop

from ostiary.core.settings import FakeSettings, TLSFiles
from ostiary.fake.process import run_command

from .load import poll


async def _serve(address: str, *tls_files: str) -> int:
    poll(asyncio.get_running_loop())
    host, _, port = address.rpartition(":")
    return await run_command(host, int(port), FakeSettings(tls=TLSFiles(*tls_files) if tls_files else None))


if __name__ == "__main__":
    sys.exit(uvloop.run(_serve(*sys.argv[1:])))
