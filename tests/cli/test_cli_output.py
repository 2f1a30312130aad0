"""What reaches the terminal."""

import io
import json
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.cli.audit import changed_fields
from ostiary.cli.explain import timeline, trace_lines
from ostiary.cli.output import Column, ago, clean, indented, one_line, print_fields, print_json, print_table, took


@given(st.text())
def test_no_control_character_gets_through(text: str) -> None:
    shown = clean("\x1b]0;owned\x07" + text)
    assert not [char for char in shown if ord(char) < 32 and char not in "\n\t"]
    assert not [char for char in shown if 0x7F <= ord(char) <= 0x9F]
    assert "\n" not in one_line(text)


@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.lists(inner), max_leaves=5))
def test_json_for_a_terminal_is_the_same_json(value: object) -> None:
    import contextlib

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        print_json({"v": value})
    assert json.loads(printed.getvalue()) == {"v": value}
    assert "\x1b" not in printed.getvalue()


def test_json_for_a_terminal_of_few_characters_is_the_same_json(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"prompt": "…\U0001f600\u202e"}
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="replace")
    monkeypatch.setattr(sys, "stdout", narrow)
    print_json(value)
    narrow.seek(0)
    assert json.loads(narrow.read()) == value


def test_a_table_in_a_pipe_is_not_cut_and_not_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", Column("N", right=True), Column("LONG", cut=True)), [("[red]x[/red]", 5, "y" * 500)], "nothing")
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["A", "N", "LONG"]
    assert row.split() == ["[red]x[/red]", "5", "y" * 500]


def test_a_narrow_terminal_gets_whole_ids_and_fewer_columns() -> None:
    from rich.cells import cell_len

    from ostiary.cli.output import table_lines

    columns = [Column("ID"), Column("FIRST", drop=2), Column("SECOND", drop=1), Column("TEXT", cut=True)]
    rows = [["i" * 36, "f" * 10, "s" * 10, "漢字" * 20], ["i" * 36, "f", "s", "short"]]
    for width in (36 + 2 + 12, 60, 80, 100, 200):
        lines = table_lines(columns, rows, width)
        assert all(cell_len(line) <= width for line in lines)
        assert all(line.startswith("i" * 36) for line in lines[1:])
    assert table_lines(columns, rows, 62)[0].split() == ["ID", "FIRST", "TEXT"]
    assert table_lines(columns, rows, 50)[0].split() == ["ID", "TEXT"]
    assert table_lines(columns, rows, 50)[1].endswith("…")


def test_an_empty_table_says_so_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A",), [], "nothing here")
    assert capsys.readouterr() == ("", "nothing here\n")


def test_fields_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields([("one", 1), ("empty", ""), ("none", None), ("three", "x\ny")])
    assert capsys.readouterr().out == "one    1\nthree  x y\n"


def test_distances_in_time() -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    for seconds, shown in ((0, "0s ago"), (59, "59s ago"), (3600, "1h ago"), (86400 * 3, "3d ago"), (-90, "in 1m")):
        assert ago((now - timedelta(seconds=seconds)).isoformat(), now) == shown
    assert ago(None) == ago("nonsense") == ""
    assert took("2026-11-01T00:00:00Z", "2026-11-01T00:00:01.5Z") == "1.50s"
    assert took("2026-11-01T00:00:00Z", "2026-11-01T00:00:00.042Z") == "42ms"
    assert took("2026-11-01T00:00:00Z", None) == ""


def test_long_texts_say_how_much_is_left_out() -> None:
    assert indented("a\nb\nc", "> ", 2) == "> a\n> b\n> … 1 more lines"


def test_a_trace_reads_as_a_timeline() -> None:
    lines = timeline(
        {"identify": 120, "something": 900},
        [
            {"at_us": 300, "key_hint": "sk-a...x", "error": "refused"},
            {"at_us": 700, "reused_connection": True, "status": 200},
        ],
    )
    assert [" ".join(line.split()) for line in lines] == [
        "0.120 +0.120 token known",
        "0.300 +0.180 attempt 1 with sk-a...x on a new connection -> failed: refused",
        "0.700 +0.400 attempt 2 on an open connection -> answered 200",
        "0.900 +0.200 something",
    ]
    text = "\n".join(trace_lines({"candidates": [["sk-a", "cooling"], ["sk-b", ""]], "edits": ["model"]}))
    assert "sk-a  cooling" in text
    assert "sk-b  taken" in text


def test_an_audit_entry_names_what_changed() -> None:
    assert changed_fields({"a": 1, "b": 2, "updated_at": 1}, {"a": 1, "b": 3, "updated_at": 2}) == "b"
    assert changed_fields(None, {"a": 1}) == ""
