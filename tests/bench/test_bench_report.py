"""What is printed, and what is written into docs/performance.md."""

from pathlib import Path

import pytest

from bench import report
from bench.growth import cores_table, further
from bench.machine import Others
from bench.parts import DIRECT, NGINX, OURS, Figures
from bench.report import Conditions, Table, number
from bench.rounds import Latency, Result
from bench.stages import Measured, grouped, tables
from bench.works import ALONE, CALLS

CONDITIONS = Conditions({"cores": "4"}, 12.0, 0.5, pinned=True)
PAGE = """before
<!-- figures: written by `make bench` -->
old figures
<!-- end of figures -->
between
<!-- growth: written by `make bench-growth` -->
old growth
<!-- end of growth -->
after
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "performance.md"
    file.write_text(PAGE)
    monkeypatch.setattr(report, "PAGE", file)
    return file


def result(cpu_us: float, per_second: float = 1000.0) -> Result:
    return Result(per_second, cpu_us, cpu_us * 0.9, 1.25, 2.0, {"link": 5.0}, 1.0, (cpu_us, cpu_us * 1.1))


def test_a_block_is_replaced_and_the_rest_of_the_page_stays(page: Path) -> None:
    report.write_block("growth", "new growth", CONDITIONS, ["not measured: live: why"])

    written = page.read_text()
    assert "old growth" not in written
    assert "new growth" in written
    assert "- not measured: live: why" in written
    for kept in ("before\n", "old figures", "\nbetween\n", "\nafter\n"):
        assert kept in written


def test_writing_twice_leaves_one_block(page: Path) -> None:
    report.write_block("growth", "first", CONDITIONS)
    report.write_block("growth", "second", CONDITIONS)

    assert "first" not in page.read_text()
    assert page.read_text().count("<!-- end of growth -->") == 1


def test_a_page_without_the_marks_is_left_alone(page: Path) -> None:
    with pytest.raises(ValueError, match="lacks the lines"):
        report.write_block("stages", "content", CONDITIONS)

    assert page.read_text() == PAGE


def test_the_real_page_has_a_place_for_every_block() -> None:
    text = report.PAGE.read_text()

    for block, command in report._MADE_BY.items():
        begin, end = f"<!-- {block}: written by `{command}` -->", f"<!-- end of {block} -->"
        assert text.count(begin) == text.count(end) == 1
        assert text.index(begin) < text.index(end)


def test_bad_conditions_are_told_with_the_figures() -> None:
    busy = Others(load=7.5, busy=0.9)
    told = Conditions({}, 1.0, busy.load, pinned=False, warnings=busy.warnings()).sentence()

    assert "nothing pinned" in told
    assert "90% of the cores' time" in told
    assert "7.5" in told


def test_good_conditions_need_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1, 2, 3})

    assert Others(load=0.1, busy=0.01).warnings() == []


def test_fewer_than_four_cores_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})

    assert "2 cores for 4 roles" in Others(load=0.1, busy=0.01).warnings()[0]


def test_table_as_text_and_as_markdown() -> None:
    table = Table("Title", ["what", "µs"], [["one", "1.5"], ["longer", "200"]], "A note.")

    assert table.as_text().splitlines() == ["Title", "what     µs", "one     1.5", "longer  200", "A note."]
    assert table.as_markdown().splitlines() == [
        "**Title**",
        "",
        "| what | µs |",
        "| --- | --: |",
        "| one | 1.5 |",
        "| longer | 200 |",
        "",
        "A note.",
    ]


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1,234"), (20, "20"), (19.999, "20"), (2.5, "2.5"), (0.0, "0")])
def test_numbers_have_as_many_digits_as_say_something(value: float, text: str) -> None:
    assert number(value) == text


def test_main_run_shows_what_was_measured_and_what_was_not() -> None:
    latency = {
        name: Latency(0.1 + add, 1.0 + add, 0.9, 1.4, add, add, 80.0, 15)
        for name, add in ((DIRECT, 0.0), (NGINX, 0.05), (OURS, 0.25))
    }
    figures = Figures(
        compared={"calls": {OURS: result(30.0), NGINX: result(20.0)}},
        latency=latency,
        gateways={
            CALLS.title: {OURS: result(30.0), NGINX: result(20.0), "Portkey": result(2000.0, 300.0)},
            ALONE.title: {OURS: result(30.0), NGINX: result(20.0)},
        },
        builds={CALLS.title: {"compiled": result(30.0), "interpreted": result(60.0)}},
        left_out={"litellm": "not asked for"},
    )
    text = report.as_text(figures, CONDITIONS)
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}

    call = " ".join(lines["CPU per call, 2 KB → 1.5 KB, ÷ nginx"])
    assert call.endswith("1.5 ok, aim met 30.0 ÷ 20.0 µs; of lower quartiles 1.50 (27.0 ÷ 18.0)")
    assert lines["Portkey"] == ["Portkey", "2,000", "300", "–", "–", "–", "–", "–"]
    assert lines["direct"] == ["direct", "0.10", "1.00", "0.90", "to", "1.40"]
    assert "not measured: litellm: not asked for" in text
    assert "| call, 2 KB request, 1.5 KB answer | 30 | 60 | 2 |" in report.as_markdown(figures)


def test_growth_is_told_by_each_further_unit() -> None:
    assert further([10.0, 15.0, 35.0], [1.0, 11.0, 21.0]) == ["", "0.50", "2.00"]


def test_runs_on_fewer_cores_stand_side_by_side() -> None:
    def figures(ours: float, theirs: float) -> dict[str, object]:
        compared = {
            OURS: {"quiet_us": ours, "per_second": 1e6 / ours},
            NGINX: {"quiet_us": theirs, "per_second": 50_000},
        }
        return {"compared": {"calls": compared}, "latency": {}}

    table = cores_table({4: figures(50.0, 20.0), 1: figures(80.0, 20.0)})
    lines = {line[0]: line[1:] for line in table.rows}

    assert table.head == ["", "4 cores", "1 core"]
    assert lines["CPU per call ÷ nginx"] == ["2.50", "4.00"]
    assert lines["calls/s, Ostiary"] == ["20,000", "12,500"]
    assert lines["CPU per stream ÷ nginx"] == ["–", "–"]
    assert lines["500 calls/s, direct: p50 / p99 ms"] == ["–", "–"]


_PERF = """
# Total Lost Samples: 0
    40.10%  python3.11
    20.00%  [kernel.kallsyms]
    15.00%  3204bda914b7__mypyc.cpython-311-x86_64-linux-gnu.so
     5.00%  loop.cpython-311-x86_64-linux-gnu.so
     4.00%  _core.cpython-311-x86_64-linux-gnu.so
     3.00%  libc.so.6
     2.00%  libcrypto.so.3
     1.00%  _datetime.cpython-311-x86_64-linux-gnu.so
     0.50%  something.so
     0.25%  [vdso]
"""


def test_samples_of_perf_are_summed_by_whose_code_it_is() -> None:
    assert grouped(_PERF) == pytest.approx(
        {
            "Python: interpreter and runtime": 0.411,
            "kernel: sockets, files, scheduling": 0.2025,
            "Ostiary's compiled modules": 0.15,
            "uvloop, with libuv": 0.05,
            "msgspec": 0.04,
            "C library": 0.03,
            "SHA-256, CRC-32": 0.02,
            "the rest": 0.005,
        }
    )


def test_what_lies_between_stages_is_the_whole_less_their_sum() -> None:
    inside = {
        name: {"stages": {"head": 2.0, "journal": 3.0}, "failed": {}, "whole": 12.0}
        for name in ("call", "stream in one read", "stream, a read an event")
    }
    measured = Measured(inside, {"call": 20.0}, {"call": 0.25})

    stages, live = tables({"interpreted": measured})

    assert stages.rows[-2] == ["between the stages", "7.0", "7.0", "7.0"]
    assert live.rows == [["call", "interpreted", "20", "25%", "12", "8"]]
