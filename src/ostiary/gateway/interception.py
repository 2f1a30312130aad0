"""The record of one exchange: in the journal before anything goes upstream, and ended exactly once.

Rules
- Whoever makes an `Interception` ends it, also where `durable` says that nothing may go upstream.
- An end that finds no room, or that cannot be put together, is written without its content rather than not at all; and
  when even that finds none, the journal owes it.
"""

from typing import TYPE_CHECKING

from ostiary.core.records import InterceptionEnd, InterceptionStart, Trace, encode_record
from ostiary.wire.facts import ResponseFacts

from .journal import MAX_BARE_END, JournalError, NotDurable
from .recording import Ending, bare_end, end_record, without_content

if TYPE_CHECKING:
    from .worker import Worker


class Interception:
    """`tool_results`: what the request brought of them, kept for the end. Raises `JournalError` when nothing is written."""

    __slots__ = ("_inflight", "_tool_results", "_worker", "durable", "start")

    def __init__(self, worker: "Worker", start: InterceptionStart, tool_results: tuple[str, ...]) -> None:
        self.durable = True
        # before the start is written: nothing may fail between that and what sees to its end
        self._inflight = inflight = worker.metrics.inflight(start.provider_name, start.model, start.route)
        try:
            worker.journal.append_start(encode_record(start))
        except NotDurable as error:
            worker.log_journal_failure(error)
            self.durable = False
        self._worker = worker
        self._tool_results = tool_results
        self.start = start
        inflight[0] += 1

    def end(
        self, ending: Ending, *, hint: str, facts: ResponseFacts | None, trace: Trace, seconds: float
    ) -> InterceptionEnd:
        """Write the end and count it; gives what was to be written.

        `seconds`: how long it all took. The end's time is counted from the start's, whatever the clock has done meanwhile.
        """
        worker = self._worker
        start = self.start
        now_us = start.started_at + int(seconds * 1e6)
        self._inflight[0] -= 1
        try:
            record = end_record(
                start.id,
                now_us,
                ending,
                hint=hint,
                facts=facts,
                tool_results=self._tool_results,
                trace=trace,
                content="none" if worker.journal.shed_content else worker.settings.record_content,
            )
            self._append(record)
        except Exception as error:  # noqa: BLE001 - whatever an answer holds, it has an end
            worker.failures.log(error, start.id)
            record = bare_end(start.id, now_us, ending)
            self._append(record)
        worker.metrics.ended(
            start.provider_name,
            start.model,
            start.route,
            start.client,
            status=ending.status,
            outcome=ending.outcome,
            seconds=seconds,
            prompted=start.prompt is not None,
            facts=facts,
        )
        return record

    def _append(self, record: InterceptionEnd) -> None:
        journal = self._worker.journal
        payload = encode_record(record)
        try:
            journal.append_end(payload)
        except NotDurable as unsynced:  # names of their own: compiled, a name has the type of its first use
            self._worker.log_journal_failure(unsynced)
        except JournalError as unwritten:
            self._worker.log_journal_failure(unwritten)
            bare = encode_record(without_content(record))
            try:
                journal.append_end(bare)
            except NotDurable as unsynced:
                self._worker.log_journal_failure(unsynced)
            except JournalError as unwritten:
                self._worker.log_journal_failure(unwritten)
                journal.owe_end(payload if len(payload) <= MAX_BARE_END else bare)
