"""The `interception log` lines that a machine writes of its own records: each once, whatever becomes of their batch."""

import asyncio
import time
import uuid
from contextlib import suppress
from pathlib import Path

import uvloop
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from control_far_end import KEY, FarEnd, until
from structlog.testing import capture_logs

from ostiary.core.metrics import Registry
from ostiary.core.records import InterceptionEnd, InterceptionStart, encode_record
from ostiary.core.secret import Secret
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.journal import Journal
from ostiary.link.client import ControlClient
from ostiary.link.interception_log import log_records
from ostiary.link.journal_shipper import ShipperMetrics
from ostiary.link.shipper import Shipper
from tests.support.records import end, start

FIELDS = {
    "interception_start": "interception_id initiator_id api_key_id provider provider_name model client client_session_id "
    "started_at metadata correlating_tool_call_id",
    "prompt_usage": "interception_id msg_id prompt created_at metadata",
    "token_usage": "interception_id msg_id input_tokens output_tokens cache_read_input_tokens cache_write_input_tokens "
    "created_at metadata",
    "tool_usage": "interception_id msg_id tool_call_id item_id tool input server_url injected invocation_error created_at "
    "metadata",
    "model_thought": "interception_id content created_at metadata",
    "interception_end": "interception_id ended_at",
}


def shipped(root: Path, records: list[bytes], far: FarEnd) -> list[str]:
    """Ship these records to `far` and back; gives the ids that were logged, in their order."""

    async def main() -> None:
        async with far, ControlClient(far.url, Secret(KEY)) as client:
            settings = GatewaySettings(journal_dir=str(root))
            journal = Journal.open(root, settings, str(uuid.uuid4()), time.monotonic)
            for record in records:
                journal.append_end(record)
            shipper = Shipper(root, client, ShipperMetrics(Registry()), lambda: None, log_records)
            shipping = asyncio.create_task(shipper.run())
            await until(lambda: far.journals.get(journal.id, 0) >= len(records))
            journal.append_end(encode_record(InterceptionEnd("last", 2, "completed")))
            shipper.look_now()
            await until(lambda: far.journals.get(journal.id, 0) > len(records))
            shipping.cancel()
            with suppress(asyncio.CancelledError):
                await shipping
            journal.close()

    with capture_logs() as lines:
        uvloop.run(main())
    return [line["interception_id"] for line in lines if line["event"] == "interception log"]


def ends(count: int) -> list[bytes]:
    return [encode_record(InterceptionEnd(f"end-{number}", 2, "completed")) for number in range(count)]


def test_the_fields_are_the_public_ones() -> None:
    one = start(correlating_tool_call_id="toolu_0")
    with capture_logs() as lines:
        log_records([encode_record(one), encode_record(end(one, calls=["toolu_1"]))])
    assert {line["record_type"]: set(line) - {"event", "log_level", "record_type"} for line in lines} == {
        kind: set(fields.split()) for kind, fields in FIELDS.items()
    }
    assert {(line["event"], line["log_level"]) for line in lines} == {("interception log", "info")}
    assert lines[0]["started_at"].endswith("+00:00")


def test_what_is_no_record_is_left_out() -> None:
    late = InterceptionStart("late", "", "", "openai", "openai", "m", "/v1/responses", 2**62)  # in the year 148,000
    with capture_logs() as lines:
        log_records([b"\xc1 nothing", encode_record(late), *ends(1)])
    assert [line["interception_id"] for line in lines] == ["end-0"]


def test_each_record_is_one_line_when_all_goes_well(tmp_path: Path) -> None:
    assert shipped(tmp_path, ends(3), FarEnd()) == ["end-0", "end-1", "end-2", "last"]


def test_a_batch_that_is_sent_again_is_not_told_again(tmp_path: Path) -> None:
    far = FarEnd()
    far.failing["record"] = [None, ConnectError(Code.UNAVAILABLE, "away")]  # where it holds the journal, then the batch
    assert shipped(tmp_path, ends(5), far) == [*(f"end-{number}" for number in range(5)), "last"]


def test_a_batch_whose_answer_was_lost_is_told(tmp_path: Path) -> None:
    far = FarEnd()
    far.lose_answers = 1
    assert shipped(tmp_path, ends(5), far) == [*(f"end-{number}" for number in range(5)), "last"]
