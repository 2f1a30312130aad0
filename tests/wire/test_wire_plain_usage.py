"""The short ways through usual reports say what the long ways say."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.wire.lenient import NestingError
from ostiary.wire.usage import MessagesUsage, _any_chat_usage, _usual_chat_usage, chat_usage

NUMBER = st.one_of(st.none(), st.integers(-3, 2**54), st.just(True), st.just(2.0), st.just("7"))
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "input_tokens": NUMBER,
        "output_tokens": NUMBER,
        "cache_read_input_tokens": NUMBER,
        "cache_creation_input_tokens": NUMBER,
        "cache_creation": st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {}, optional={"ephemeral_5m_input_tokens": NUMBER, "ephemeral_1h_input_tokens": NUMBER}
            ),
        ),
        "service_tier": st.one_of(st.none(), st.just(""), st.just("standard"), st.just(3)),
        "inference_geo": st.one_of(st.none(), st.just("eu")),
        "server_tool_use": st.fixed_dictionaries({"web_search_requests": NUMBER}),
        "something_new": NUMBER,
    },
)


@given(FIELDS)
def test_both_ways_give_the_same_numbers(fields):
    raw = msgspec.json.encode(fields)
    single = MessagesUsage()
    single.report(raw)
    merged = MessagesUsage()
    merged._merge(raw)  # the long way, which a second report would take
    assert single.usage() == merged._merged_usage()


SMALL = st.one_of(st.none(), st.integers(0, 9))


def details(*names, numbers):
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, numbers))


def chat_reports(numbers, others):
    return st.fixed_dictionaries(
        {},
        optional={
            "prompt_tokens": numbers,
            "completion_tokens": numbers,
            "total_tokens": numbers,
            "prompt_cache_hit_tokens": numbers,
            "prompt_tokens_details": others
            | details("cached_tokens", "cache_write_tokens", "audio_tokens", numbers=numbers),
            "completion_tokens_details": others
            | details(
                "reasoning_tokens",
                "audio_tokens",
                "accepted_prediction_tokens",
                "rejected_prediction_tokens",
                numbers=numbers,
            ),
            "something_new": others,
        },
    )


@given(chat_reports(SMALL, st.none()) | chat_reports(NUMBER, st.none() | st.just([]) | st.just("x")))
def test_both_ways_through_chat_give_the_same_numbers(fields):
    raw = msgspec.json.encode(fields)
    usual, long = _usual_chat_usage(raw, "flex"), _any_chat_usage(raw, "flex")

    assert usual is None or usual == long
    assert chat_usage(raw, "flex") == long


def test_the_usual_report_takes_the_short_way():
    raw = (
        b'{"prompt_tokens":20,"completion_tokens":5,"total_tokens":25,"prompt_tokens_details":{"cached_tokens":8,'
        b'"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":3,"text_tokens":2},"cost":0.1}'
    )
    usage = _usual_chat_usage(raw, "")

    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens) == (12, 5, 8)
    assert usage.metadata == {"prompt_audio": 0, "completion_reasoning": 3}


def test_both_ways_say_the_same_of_what_is_nested_beyond_reading():
    raw = b'{"prompt_tokens":3,"completion_tokens":2,"new":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

    for read in (chat_usage, _any_chat_usage):
        with pytest.raises(NestingError):
            read(raw, "")
