"""gateway/recording.py: an end without content has room in what the journal sets aside for it, whatever others wrote."""

import uuid
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from ostiary.core.journal import HEADER_SIZE
from ostiary.core.records import (
    MAX_ERROR_MESSAGE,
    MAX_TOKENS,
    InterceptionEnd,
    ModelThought,
    TokenUsage,
    ToolUsage,
    Trace,
    decode_record,
    encode_record,
)
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.journal import END_RESERVE, MAX_BARE_END, Journal, JournalFull
from ostiary.gateway.recording import Ending, bare_end, without_content

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
