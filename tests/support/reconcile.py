"""What reached the provider, what is recorded, what stood in the journals: the three must agree.

Rules
- The fake provider's ledger says what reached it, by mark; a mark stands in the prompt of its request.
- Exactly one interception for each of them, ended, with usage when it completed; and one provider call for each mark.
- Journal by journal: acknowledged = stored + duplicate + rejected = what the interceptions of that journal account for.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from ostiary.core.journal import Rest, parse, segment_first_seq
from ostiary.core.records import WorkerGone, decode_record
from tests.support.fake_provider import FakeProvider
from tests.support.load import Call
from tests.support.server import Server, eventually

_MARK = re.compile(r"fake-mark:(\S+)")


class Reconciled(NamedTuple):
    """All interceptions of the server, by mark, and all journals, by id."""

    by_mark: dict[str, dict[str, Any]]
    journals: dict[str, dict[str, Any]]
    late: list[str]
    """Answered whole, and the worker died before it could write so: it writes to the client first."""

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(row["outcome"] for row in self.by_mark.values())

    def __str__(self) -> str:
        frames = {name: sum(journal[name] for journal in self.journals.values()) for name in ("stored", "duplicate")}
        return (
            f"{len(self.by_mark)} interceptions {dict(self.outcomes)}, {len(self.late)} of them answered whole and not "
            f"known to be; {len(self.journals)} journals {frames}"
        )


def reconcile(server: Server, fake: FakeProvider, calls: list[Call], *, within: float = 30.0) -> Reconciled:
    """Wait until everything is shipped, then compare. For servers whose stops were all `kill -9`."""
    reached = fake.marks()
    rows = eventually(lambda: _all_shipped(server), within=within, what=f"all is shipped and ended:\n{server.tail()}")
    journals = {one["journal_id"]: one for one in journals_of(server)}
    marks = Counter(mark_of(row) for row in rows)
    assert not [mark for mark, count in reached.items() if count != 1], "asked the provider twice"
    assert not [mark for mark, count in marks.items() if count != 1], "recorded twice"
    assert not set(reached) - set(marks), "reached the provider and is not recorded"
    by_mark = {mark_of(row): row for row in rows}
    for mark in set(marks) - set(reached):
        assert by_mark[mark]["outcome"] == "interrupted", f"recorded, never sent, and not interrupted: {by_mark[mark]}"
    for row in rows:
        if row["outcome"] == "completed":
            assert [usage["output_tokens"] > 0 for usage in row["token_usages"]] == [True], row
    late = []
    for call in calls:
        if call.interception_id:
            assert by_mark[call.mark]["id"] == call.interception_id
        if call.good and by_mark[call.mark]["outcome"] != "completed":
            assert by_mark[call.mark]["outcome"] == "interrupted", by_mark[call.mark]
            late.append(call.mark)
    _check_journals(rows, journals)
    assert "Traceback" not in server.log.read_text(), "an unexpected error, see the log"
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


def metric(server: Server, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels; 0 without any."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    total = 0.0
    for line in httpx.get(server.metrics_url, timeout=10).text.splitlines():
        given, _, value = line.rpartition(" ")
        if given.partition("{")[0] == name and all(label in given for label in wanted):
            total += float(value)
    return total


def _all_shipped(server: Server) -> list[dict[str, Any]] | None:
    if metric(server, "ostiary_link_up") != 1 or metric(server, "ostiary_link_records_pending"):
        return None
    if len(list((server.data_dir / "journal").glob("*-*"))) != metric(server, "ostiary_link_workers"):
        return None  # journals of dead workers are left
    rows = server.interceptions()
    return rows if all(row["ended_at"] for row in rows) else None


def _check_journals(rows: list[dict[str, Any]], journals: dict[str, dict[str, Any]]) -> None:
    starts = Counter(row["journal_id"] for row in rows)
    ends = Counter(row["journal_id"] for row in rows if row["outcome"] != "interrupted")
    assert set(starts) <= set(journals)
    for journal_id, journal in journals.items():
        assert journal["acked_seq"] == journal["stored"] + journal["duplicate"] + journal["rejected"], journal
        assert not journal["rejected"], journal
        assert not journal["duplicate"], journal
        assert journal["stored"] == starts[journal_id] + ends[journal_id] + journal["gone"], journal


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
