"""The link against the real control plane and a real PostgreSQL: the numbers of a journal add up."""

import asyncio
import time
import uuid
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import asyncpg
import uvloop
from control_far_end import until
from sqlalchemy.engine import make_url

from ostiary.core.journal import HEADER_SIZE
from ostiary.core.metrics import Registry
from ostiary.core.secret import Secret
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.journal import Journal
from ostiary.link.client import ControlClient
from ostiary.link.journal_shipper import ShipperMetrics
from ostiary.link.shipper import Shipper
from tests.support.control_server import GATEWAY_KEY, OWNER_TOKEN, control_settings, serving
from tests.support.records import encoded, end, start


async def rows(database_url: Secret, query: str) -> list[asyncpg.Record]:
    url = make_url(database_url.reveal()).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(query)
    finally:
        await connection.close()


def test_appended_is_stored_plus_duplicate_plus_rejected(database_url: Secret, tmp_path: Path) -> None:
    root = tmp_path / "journal"

    async def main() -> None:
        settings = GatewaySettings(journal_dir=str(root), journal_segment_bytes=20_000)
        journal = Journal.open(root, settings, str(uuid.uuid4()), time.monotonic)
        started = [start() for _ in range(300)]
        for one in started:
            journal.append_start(encoded([one])[0])
        for one in started[:-5]:
            journal.append_end(encoded([end(one)])[0])
        journal.append_end(b"not a record")
        journal.close()
        middle = sorted(journal.path.glob("*.seg"))[3]
        data = bytearray(middle.read_bytes())
        data[HEADER_SIZE + 3] ^= 0x40
        middle.write_bytes(data)

        async with (
            serving(control_settings(database_url, tmp_path)) as server,
            ControlClient(server.url, Secret(GATEWAY_KEY)) as client,
        ):
            metrics = ShipperMetrics(Registry())
            shipping = asyncio.create_task(Shipper(root, client, metrics, lambda: None).run())
            try:
                await until(lambda: not journal.path.exists())
            finally:
                shipping.cancel()
                with suppress(asyncio.CancelledError):
                    await shipping
            (counted,) = await rows(database_url, "SELECT * FROM journals")
            appended = journal.seq + 1  # with the link's WorkerGone
            assert counted["acked_seq"] == appended
            assert counted["stored"] + counted["duplicate"] + counted["rejected"] == appended
            assert (counted["duplicate"], counted["gone"]) == (0, True)
            assert metrics.shipped[0] == appended
            outcomes = {
                row["outcome"]: row["count"]
                for row in await rows(database_url, "SELECT outcome, count(*) FROM interceptions GROUP BY outcome")
            }
            # what was damaged was a start: its end has nothing to close and is kept aside as well
            assert sum(outcomes.values()) == 299
            assert outcomes["interrupted"] == 5
            assert (
                counted["rejected"]
                == metrics.rejected[0]
                == len(await rows(database_url, "SELECT seq FROM ingest_rejected"))
            )

            who = await client.is_authorized(sha256(OWNER_TOKEN.encode()).digest(), 5)
            assert (who.username, who.role) == ("admin", "owner")
            assert list((await client.get_ai_providers(0)).providers) == []

    uvloop.run(main())
