"""gateway/recording.py: an end without content has room in what the journal sets aside for it, whatever others wrote."""

import resource
import uuid
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ostiary.core.journal import HEADER_SIZE, parse, segment_name
from ostiary.core.records import (
    MAX_ERROR_MESSAGE,
    MAX_TOKENS,
    InterceptionEnd,
    InterceptionStart,
    ModelThought,
    TokenUsage,
    ToolUsage,
    Trace,
    decode_record,
    encode_record,
)
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.interception import Interception
from ostiary.gateway.journal import END_RESERVE, MAX_BARE_END, RECHECK_INTERVAL, Journal, JournalFull
from ostiary.gateway.recording import Ending, bare_end, end_record, without_content
from ostiary.gateway.worker import Worker
from ostiary.http1.pool import client_tls_context
from ostiary.wire.facts import ResponseFacts

ID = str(uuid.UUID(int=2**128 - 1))
NOW_US = 2**53

texts = st.builds(str.__mul__, st.sampled_from(("a", '"', "\n", "é", "漢", "😀")), st.integers(0, 6000))
numbers = st.integers(0, MAX_TOKENS)
usages = st.builds(
    TokenUsage,
    id=st.just(ID),
    created_at=st.just(NOW_US),
    provider_response_id=texts,
    input_tokens=numbers,
    output_tokens=numbers,
    cache_read_input_tokens=numbers,
    cache_write_input_tokens=numbers,
    metadata=st.dictionaries(st.text(st.sampled_from("abc_"), max_size=40), numbers | texts, max_size=30),
    raw=texts,
)
ends = st.builds(
    InterceptionEnd,
    id=st.just(ID),
    ended_at=st.just(NOW_US),
    outcome=st.sampled_from(("completed", "upstream_error", "interrupted")),
    status_code=st.integers(0, 999),
    error_type=st.sampled_from((None, "server_error")),
    error_message=texts,
    credential_hint=texts,
    provider_response_id=texts,
    response_model=texts,
    finish_reason=texts,
    unparsed=st.booleans(),
    token_usages=st.lists(usages, max_size=1),
    output_text=texts,
    tool_results=st.lists(texts, max_size=3),
    tool_usages=st.lists(st.builds(ToolUsage, st.just(ID), st.just(NOW_US), texts, texts), max_size=3),
    model_thoughts=st.lists(st.builds(ModelThought, st.just(ID), st.just(NOW_US), texts), max_size=3),
    trace=st.builds(Trace, notes=st.lists(texts, max_size=3)),
)

LARGEST = InterceptionEnd(
    ID,
    NOW_US,
    "upstream_error",
    599,
    "server_error",
    "😀" * MAX_ERROR_MESSAGE,
    *("😀" * 3000,) * 4,
    unparsed=True,
    token_usages=[
        TokenUsage(
            ID,
            NOW_US,
            "😀" * 3000,
            *(MAX_TOKENS,) * 4,
            {f"number_{at:02}": MAX_TOKENS for at in range(51)},
            "x" * 1024,
        )
    ],
)
"""As much as is kept of everything."""


@example(LARGEST)
@given(ends)
def test_an_end_without_content_has_room_in_what_is_set_aside_and_keeps_how_it_ended_and_what_it_cost(
    end: InterceptionEnd,
) -> None:
    bare = without_content(end)
    payload = encode_record(bare)
    assert HEADER_SIZE + len(payload) <= HEADER_SIZE + MAX_BARE_END == END_RESERVE
    assert decode_record(payload) == bare
    assert (bare.id, bare.ended_at, bare.outcome) == (end.id, end.ended_at, end.outcome)
    assert (bare.status_code, bare.error_type, bare.unparsed) == (end.status_code, end.error_type, end.unparsed)
    for kept, usage in zip(bare.token_usages, end.token_usages, strict=True):
        assert kept.input_tokens == usage.input_tokens
        assert kept.output_tokens == usage.output_tokens
        assert kept.cache_read_input_tokens == usage.cache_read_input_tokens
        assert kept.cache_write_input_tokens == usage.cache_write_input_tokens
    assert not (bare.tool_usages or bare.model_thoughts or bare.output_text or bare.tool_results)


def test_what_is_of_the_usual_length_stays_as_it_was_written() -> None:
    usage = TokenUsage(
        ID, NOW_US, "resp_1", 1, 2, 3, 4, {"service_tier": "default", "output_reasoning": 5}, '{"input_tokens":8}'
    )
    end = InterceptionEnd(
        ID, NOW_US, "completed", 200, None, "said", "sk-1...abcd", "resp_1", "model", "stop", token_usages=[usage]
    )
    bare = without_content(end)
    assert bare.token_usages == [usage]
    assert (bare.error_message, bare.credential_hint) == ("said", "sk-1...abcd")
    assert (bare.provider_response_id, bare.response_model, bare.finish_reason) == ("resp_1", "model", "stop")


def test_the_end_after_a_mistake_of_ours_has_room_too() -> None:
    ending = Ending()
    ending.outcome, ending.error_type, ending.error_message = "interrupted", "server_error", "😀" * 100_000
    assert len(encode_record(bare_end(ID, NOW_US, ending))) <= MAX_BARE_END


def test_a_full_journal_takes_the_largest_end_without_content_of_all_that_started(tmp_path: Path) -> None:
    settings = GatewaySettings(journal_dir=str(tmp_path), journal_max_bytes=100_000)
    journal = Journal.open(tmp_path, settings, ID, lambda: 0.0)
    started = 0
    while True:
        try:
            journal.append_start(b"start")
        except JournalFull:
            break
        started += 1
    payload = encode_record(without_content(LARGEST))
    for _ in range(started):
        journal.append_end(payload)
    assert journal.seq == 2 * started > 20
    journal.close()


@pytest.mark.parametrize(("size", "whole"), [(MAX_BARE_END, True), (MAX_BARE_END + 1, False), (END_RESERVE - 1, False)])
def test_an_end_is_owed_with_its_content_only_if_that_has_room_in_what_is_set_aside(
    tmp_path: Path, size: int, whole: bool
) -> None:
    now = [0.0]
    settings = GatewaySettings(journal_dir=str(tmp_path), record_content="full")
    journal = Journal.open(tmp_path, settings, ID, lambda: now[0])
    worker = Worker(settings, journal, client_tls_context(""), lambda _: False)
    start = InterceptionStart(ID, "u", "k", "openai", "openai", "m", "/r", NOW_US)
    interception = Interception(worker, start, ())
    ending = Ending()

    def of(text: str) -> ResponseFacts:
        return ResponseFacts(output_text=text)

    def encoded(facts: ResponseFacts) -> bytes:
        return encode_record(
            end_record(ID, NOW_US, ending, hint="", facts=facts, tool_results=(), trace=Trace(), content="full")
        )

    facts = of("x" * (1000 + size - len(encoded(of("x" * 1000)))))
    assert len(encoded(facts)) == size
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.used_bytes, limit[1]))  # for the journal, a full disk
    try:
        with capture_logs():  # the test's own output is a file
            interception.end(ending, hint="", facts=facts, trace=Trace(), seconds=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert journal.seq == 1
    now[0] += RECHECK_INTERVAL
    journal.settle()
    journal.close()
    _, payload = parse((tmp_path / ID / segment_name(1)).read_bytes(), 1).payloads
    end = decode_record(payload)
    assert isinstance(end, InterceptionEnd)
    assert (end.output_text == facts.output_text) is whole
