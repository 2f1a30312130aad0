"""The grammar of `q`."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.control.store.filters import KEYS, FilterError, Filters, parse_filters, parse_prefix


def quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def test_terms_are_keys_and_values_between_spaces() -> None:
    q = '  initiator:me provider_name:"openai eu"   model:gpt-5 session_id:"a \\"b\\" \\\\c" '
    assert parse_filters(q) == Filters(initiator="me", provider_name="openai eu", model="gpt-5", session_id='a "b" \\c')


def test_nothing_narrows_nothing() -> None:
    assert parse_filters("") == parse_filters("   ") == Filters()


def test_keys_have_no_case() -> None:
    assert parse_filters("Model:GPT-5").model == "GPT-5"


def test_a_value_may_hold_colons_and_inner_quotes() -> None:
    assert parse_filters('session_id:a:b"c').session_id == 'a:b"c'


def test_times_have_nanoseconds_and_an_offset() -> None:
    found = parse_filters("started_after:2026-11-20T08:00:00.123456789Z started_before:2026-11-20T10:00:00+02:00")
    assert found.started_after == datetime(2026, 11, 20, 8, 0, 0, 123456, tzinfo=UTC)
    assert found.started_before == datetime(2026, 11, 20, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("q", "field", "detail"),
    [
        ("hello", "q", "free text"),
        ("model:gpt-5 hello", "q", "free text"),
        ('"model:gpt-5"', "q", "free text"),
        ("modell:gpt-5", "modell", "is model meant?"),
        ("model:a model:b", "model", "twice"),
        ("model:", "model", "must have a value"),
        ('model:""', "model", "must have a value"),
        ('model:"open', "q", "free text"),
        (":x", "q", "free text"),
        ("started_after:yesterday", "started_after", "RFC 3339"),
        ("started_after:2026-11-20T08:00:00", "started_after", "RFC 3339"),
        ("started_after:0001-01-01T00:00:00+14:00", "started_after", "RFC 3339"),
        ("started_before:9999-12-31T23:59:59-14:00", "started_before", "RFC 3339"),
        ("model:" + "x" * 5000, "q", "4096"),
        ("model:a\x00b", "q", "NUL"),
    ],
)
def test_what_cannot_be_read_is_named(q: str, field: str, detail: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filters(q)
    assert any(problem.field == field and detail in problem.detail for problem in caught.value.problems)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(FilterError) as caught:
        parse_filters("a:1 b:2 free started_after:x")
    assert [problem.field for problem in caught.value.problems] == ["q", "a", "b", "started_after"]


texts = st.text(st.characters(exclude_characters="\x00\t\r\n", exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(st.dictionaries(st.sampled_from([key for key in KEYS if not key.startswith("started")]), texts))
def test_any_value_survives_quoting(values: dict[str, str]) -> None:
    assert parse_filters(" ".join(f"{key}:{quoted(value)}" for key, value in values.items())) == Filters(**values)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(q: str) -> None:
    try:
        parse_filters(q)
    except FilterError as exc:
        assert exc.problems


def test_a_list_of_names_takes_a_prefix() -> None:
    assert parse_prefix("", "model") == ""
    assert parse_prefix(" claude ", "model") == "claude"
    assert parse_prefix("Claude Code", "client") == "Claude Code"
    assert parse_prefix('client:"Claude C"', "client") == "Claude C"
    assert parse_prefix("anthropic.claude-v1:0", "model") == "anthropic.claude-v1:0"
    for wrong in ("client:x", "model:a model:b", "a\x00", "x" * 5000):
        with pytest.raises(FilterError):
            parse_prefix(wrong, "model")
