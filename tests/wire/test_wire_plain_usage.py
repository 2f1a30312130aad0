"""The short way through a single Anthropic report says what the long way says."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ostiary.wire.usage import MessagesUsage

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
