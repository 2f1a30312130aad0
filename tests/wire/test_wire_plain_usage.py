"""The short way through a usual report says what the long way says."""

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from ostiary.wire.usage import MessagesUsage, _any_chat_usage, _plain_chat_usage

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
def test_both_ways_give_anthropics_numbers(fields: dict[str, object]) -> None:
    raw = msgspec.json.encode(fields)
    single = MessagesUsage()
    single.report(raw)
    merged = MessagesUsage()
    merged._merge(raw)  # the long way, which a second report would take
    assert single.usage() == merged._merged_usage()


def details(*names: str) -> st.SearchStrategy[object]:
    return st.one_of(st.none(), st.just("x"), st.fixed_dictionaries({}, optional=dict.fromkeys(names, NUMBER)))


CHAT_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": NUMBER,
        "completion_tokens": NUMBER,
        "total_tokens": NUMBER,
        "prompt_cache_hit_tokens": NUMBER,
        "prompt_tokens_details": details("cached_tokens", "cache_write_tokens", "audio_tokens", "something_new"),
        "completion_tokens_details": details(
            "reasoning_tokens", "audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"
        ),
        "something_new": st.one_of(NUMBER, st.just({"deep": [1]})),
    },
)


@given(CHAT_FIELDS, st.sampled_from(["", "default"]))
@example({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}, "default")
def test_both_ways_give_the_numbers_of_chat(fields: dict[str, object], tier: str) -> None:
    raw = msgspec.json.encode(fields)
    plain = _plain_chat_usage(raw, tier)
    assert plain is None or plain == _any_chat_usage(raw, tier)


def test_a_usual_report_of_chat_goes_the_short_way() -> None:
    details = {"reasoning_tokens": 0, "audio_tokens": 0}
    report = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "completion_tokens_details": details}
    usage = _plain_chat_usage(msgspec.json.encode(report), "")
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (9, 2)
    assert usage.metadata == {"completion_reasoning": 0, "completion_audio": 0}
