"""Recorder: journal frames in, acknowledgements out. What is done with them is `control.ingest`'s business."""

import time
from uuid import UUID

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext

from ostiary.control.ingest import Ack, Ingest, SequenceGapError
from ostiary.control.metrics import ControlMetrics
from ostiary.rpc.ostiary_pb2 import RecordAck, RecordBatch, RejectedRecord

from .gate import guarded


class RecorderService:
    def __init__(self, ingest: Ingest, metrics: ControlMetrics) -> None:
        self._ingest = ingest
        self._metrics = metrics

    async def record(self, request: RecordBatch, _ctx: RequestContext[RecordBatch, RecordAck]) -> RecordAck:
        journal_id = _journal_id(request.journal_id)
        if request.records and request.first_seq < 1:
            raise ConnectError(Code.INVALID_ARGUMENT, "first_seq begins at 1")
        began = time.monotonic()
        try:
            ack = await guarded("record", lambda: self._store(journal_id, request))
        except ConnectError:
            self._metrics.ingest_failed()
            raise
        if request.records:
            self._metrics.ingested(len(request.records), len(ack.rejected), time.monotonic() - began)
        return RecordAck(
            acked_seq=ack.acked_seq, rejected=[RejectedRecord(seq=one.seq, reason=one.reason) for one in ack.rejected]
        )

    async def _store(self, journal_id: str, request: RecordBatch) -> Ack:
        try:
            return await self._ingest.store(journal_id, request.first_seq, request.records)
        except SequenceGapError as exc:
            raise ConnectError(Code.FAILED_PRECONDITION, str(exc)) from exc


def _journal_id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError as exc:
        raise ConnectError(Code.INVALID_ARGUMENT, "journal_id must be a UUID") from exc
