"""`python -m ostiary.fake`: the fake provider without the rest of Ostiary, for benchmarks and tests.

Prints one line when it listens: its URL.
"""

import argparse
import sys

import uvloop

from ostiary.core.settings import FakeSettings, TLSFiles

from .process import run_command


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ostiary.fake", description="A fake AI provider on loopback.")
    parser.add_argument("--listen", default="127.0.0.1:4010", metavar="HOST:PORT", help="port 0 takes any free one")
    parser.add_argument("--tls-cert-file", default="")
    parser.add_argument("--tls-key-file", default="")
    parser.add_argument("--ledger", choices=("counts", "marks", "full"), default="counts")
    parser.add_argument("--ledger-file", default="")
    given = parser.parse_args()
    host, _, port = given.listen.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        parser.error(f"--listen must be HOST:PORT; it is {given.listen!r}")
    tls = TLSFiles(given.tls_cert_file, given.tls_key_file) if given.tls_cert_file else None
    settings = FakeSettings(tls=tls, ledger=given.ledger, ledger_file=given.ledger_file)
    try:
        return uvloop.run(run_command(host.strip("[]"), int(port), settings, _announce))
    except OSError as error:
        parser.error(f"cannot serve on {given.listen}: {error}")


def _announce(url: str) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
