"""A start that the control plane ends, on a data directory that still holds records."""

import time
from pathlib import Path

from ostiary.core.ids import new_id
from ostiary.core.records import encode_record
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.journal import Journal
from tests.support.fake_provider import FakeProvider
from tests.support.records import start
from tests.support.server import START_SECONDS, StartServer


def _leave_records(root: Path, count: int) -> None:
    """What a worker leaves that was killed before anything of it was shipped."""
    journal = Journal.open(root, GatewaySettings(journal_dir=str(root)), new_id(), time.monotonic)
    for _ in range(count):
        journal.append_start(encode_record(start()))
    journal.close()


def test_a_start_that_is_refused_ends_at_once_and_says_that_records_are_kept(
    start_server: StartServer, own_fake: FakeProvider
) -> None:
    server = start_server(own_fake, "--workers", "1")
    server.kill()
    journal_dir = server.data_dir / "journal"
    _leave_records(journal_dir, 3)
    server._variables["OSTIARY_PROVIDER_0_BASE_URL"] = "http://127.0.0.1:8/elsewhere"
    server.start(ready=False)
    assert server.ended(within=START_SECONDS) == 1
    said = server.tail()
    refused = said.index("ostiary: AI provider")
    assert "base_url" in said[refused:]
    assert f"ostiary: 3 records are not shipped: they stay in {journal_dir} for the next start" in said[refused:]
    server._variables["OSTIARY_PROVIDER_0_BASE_URL"] = f"{own_fake.url}/v1"
    server.start()
    assert server.stop() == 0, server.tail()
