"""What reached the provider, what is recorded, what stood in the journals: the three must agree.

Rules
- The fake provider's ledger says what reached it, by mark; a mark stands in the prompt of its request.
- Exactly one interception for each of them, ended, with usage when it completed; and one provider call for each mark.
- Journal by journal: acknowledged = stored + duplicate + rejected = what the interceptions of that journal account for.
- An answer that came whole and is recorded as interrupted: one for each worker that died, for the last byte of an answer and
  the end of its record are written in one go, by one thread. A worker that finds no room for ends takes those along too.
- Nothing that stood on the disk when all processes of a machine died is lost, to the last whole frame.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from ostiary.core.journal import Rest, parse, segment_first_seq
from ostiary.core.records import WorkerGone, decode_record
from tests.support.fake_provider import FakeProvider
from tests.support.gateway import Gateway
from tests.support.load import Call
from tests.support.server import Machine, Server, eventually, metrics_page

_MARK = re.compile(r"fake-mark:(\S+)")


class Reconciled(NamedTuple):
    """All interceptions of the server, by mark, and all journals, by id."""

    by_mark: dict[str, dict[str, Any]]
    journals: dict[str, dict[str, Any]]
    late: list[str]
    """Answered whole, and the worker died before it had written so."""

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(row["outcome"] for row in self.by_mark.values())

    def __str__(self) -> str:
        frames = {name: sum(journal[name] for journal in self.journals.values()) for name in ("stored", "duplicate")}
        return (
            f"{len(self.by_mark)} interceptions {dict(self.outcomes)}, {len(self.late)} of them answered whole and not "
            f"known to be; {len(self.journals)} journals {frames}"
        )


def reconcile(
    server: Server,
    fake: FakeProvider,
    calls: list[Call],
    *gateways: Gateway,
    within: float = 30.0,
    unsent: Sequence[str] = ("interrupted", "rejected"),
    late_each: int = 1,
    on_disk: Mapping[str, int] | None = None,
) -> Reconciled:
    """Wait until everything is shipped, then compare. For machines whose stops were all `kill -9`.

    `unsent`: how a request may end that is recorded and did not reach the provider. `late_each`: how many whole answers may be
    recorded as interrupted of one worker that died. `on_disk`: `frames_on_disk` of what was killed at one moment.
    """
    machines = (server, *gateways)
    reached = fake.marks()
    rows = eventually(
        lambda: _all_shipped(server, machines),
        within=within,
        what=lambda: f"all is shipped and ended; {_open(server)}\n" + "\n".join(machine.tail() for machine in machines),
    )
    journals = {one["journal_id"]: one for one in journals_of(server)}
    marks = Counter(mark_of(row) for row in rows)
    assert not [mark for mark, count in reached.items() if count != 1], "asked the provider twice"
    assert not [mark for mark, count in marks.items() if count != 1], "recorded twice"
    assert not set(reached) - set(marks), "reached the provider and is not recorded"
    by_mark = {mark_of(row): row for row in rows}
    for mark in set(marks) - set(reached):
        known = by_mark[mark]["outcome"]
        assert known in unsent, f"recorded, never sent, and not told so: {by_mark[mark]}"
    assert len({row["id"] for row in rows}) == len(rows)
    by_call = {call.mark: call for call in calls}
    for row in rows:
        _check_row(server, row, by_call.get(mark_of(row)))
    late = []
    for call in calls:
        if call.interception_id:
            assert by_mark[call.mark]["id"] == call.interception_id
        elif call.complete:
            assert call.mark not in marks, f"refused before it was recorded, and recorded: {call}"
        if call.good and by_mark[call.mark]["outcome"] != "completed":
            assert by_mark[call.mark]["outcome"] == "interrupted", by_mark[call.mark]
            late.append(call.mark)
    _check_late([by_mark[mark] for mark in late], journals, late_each)
    _check_journals(rows, journals)
    _check_disk(on_disk or {}, journals)
    for machine in machines:
        assert "Traceback" not in machine.log.read_text(), f"an unexpected error, see the log: {machine.tail()}"
    return Reconciled(by_mark, journals, late)


def mark_of(row: dict[str, Any]) -> str:
    (prompt,) = row["user_prompts"]
    found = _MARK.search(prompt["prompt"])
    assert found, f"a prompt without a mark: {prompt}"
    return found[1]


def journals_of(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.get("/api/v2/ai-gateway/journals", limit=1000)["journals"]
    return found


def frames_on_disk(data_dir: Path) -> dict[str, int]:
    """Number of the last record of each journal that nobody writes to; of a `worker_gone` at the end the one before."""
    return {
        directory.name: last for directory in (data_dir / "journal").glob("*-*") if (last := _last_record(directory))
    }


def metric(server: Machine, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels; 0 without any."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    total = 0.0
    for line in metrics_page(lambda: httpx.get(server.metrics_url, timeout=10)).splitlines():
        given, _, value = line.rpartition(" ")
        if given.partition("{")[0] == name and all(label in given for label in wanted):
            total += float(value)
    return total


def linked(machine: Machine) -> bool:
    """Whether it is ready and joined to the control plane; not, when nobody can say."""
    try:
        return machine.is_ready() and metric(machine, "ostiary_link_up") == 1
    except httpx.HTTPError:
        return False


def _all_shipped(server: Server, machines: Sequence[Machine]) -> list[dict[str, Any]] | None:
    """All rows, once every record of every machine has become one and each has its end."""
    try:
        for machine in machines:
            if metric(machine, "ostiary_link_up") != 1 or metric(machine, "ostiary_link_records_pending"):
                return None
            if len(list((machine.data_dir / "journal").glob("*-*"))) != metric(machine, "ostiary_link_workers"):
                return None  # journals of dead workers are left
        rows = server.interceptions()
    except httpx.HTTPError:
        return None  # something has died a moment ago
    return rows if all(row["ended_at"] for row in rows) else None


def _open(server: Server) -> str:
    """What has no end, for the message of a failed test."""
    try:
        return f"without an end: {[(mark_of(row), row['id']) for row in server.interceptions() if not row['ended_at']]}"
    except httpx.HTTPError as error:
        return f"the server does not say: {error}"


def _check_row(server: Server, row: dict[str, Any], call: Call | None) -> None:
    """It says of its call whose it was, and when that completed, what the provider reported and asked for."""
    if row["outcome"] == "completed":
        assert len(row["token_usages"]) == 1, row
        assert row["token_usages"][0]["output_tokens"] > 0, row
    if call is not None:
        assert not call.user or row["initiator"]["username"] == call.user, f"somebody else's: {row}, {call}"
        assert row["model"] == call.kind.body["model"], row
        if row["outcome"] == "completed":
            assert row["token_usages"][0]["output_tokens"] == call.output_tokens, f"{row}, {call}"
            if len(row["tool_usages"]) != call.kind.tools:
                assert _content_was_shed(server, row), f"{row}, {call}"


def _content_was_shed(server: Server, row: dict[str, Any]) -> bool:
    """Whether there was no room for more than usage, and the record says so."""
    notes = server.interception(row["id"])["trace"]["notes"]
    return not row["tool_usages"] and "content was shed: the journal is full" in notes


def _check_journals(rows: list[dict[str, Any]], journals: dict[str, dict[str, Any]]) -> None:
    starts = Counter(row["journal_id"] for row in rows)
    ends = Counter(row["journal_id"] for row in rows if row["outcome"] != "interrupted")
    assert set(starts) <= set(journals)
    for journal_id, journal in journals.items():
        assert journal["acked_seq"] == journal["stored"] + journal["duplicate"] + journal["rejected"], journal
        assert not journal["rejected"], journal
        assert not journal["duplicate"], journal
        closings = journal["stored"] - starts[journal_id] - ends[journal_id]
        # a link that dies between the acknowledgement of a closing and the removal of the journal has it written again
        assert journal["gone"] <= closings <= 3 * journal["gone"], journal


def _check_late(rows: list[dict[str, Any]], journals: dict[str, dict[str, Any]], late_each: int) -> None:
    for journal_id, count in Counter(row["journal_id"] for row in rows).items():
        assert journals[journal_id]["gone"], f"whole answers that a living worker took for interrupted: {rows}"
        assert count <= late_each, f"ends of one worker's records are lost: {count} answers came whole: {rows}"


def _check_disk(on_disk: Mapping[str, int], journals: dict[str, dict[str, Any]]) -> None:
    for journal_id, last in on_disk.items():
        journal = journals[journal_id]
        assert journal["gone"], journal
        assert last < journal["acked_seq"] <= last + 3, f"{last} records were on disk: {journal}"  # closed, see above


def _last_record(directory: Path) -> int:
    segments = sorted(path for path in directory.iterdir() if segment_first_seq(path.name))
    if not segments:
        return 0
    first = segment_first_seq(segments[-1].name) or 1
    parsed = parse(segments[-1].read_bytes(), first)
    assert parsed.rest in (Rest.CLEAN, Rest.PARTIAL), f"{segments[-1]}: {parsed.rest}"
    last = parsed.next_seq - 1
    gone = bool(parsed.payloads) and isinstance(decode_record(parsed.payloads[-1]), WorkerGone)
    return last - gone
