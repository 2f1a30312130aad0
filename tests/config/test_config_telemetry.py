"""Settings of OpenTelemetry and of the `interception log` lines: ours, and the variables that others know."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from ostiary.config import ConfigError, load
from ostiary.config.plan import gateway_plan, server_plan
from ostiary.core.settings import GatewaySettings


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def gateway(flags: Mapping[str, object] | None = None, **variables: str) -> GatewaySettings:
    return server_plan(load(flags or {}, variables)).gateway


def problem(**variables: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load({}, variables)
    (found,) = caught.value.problems
    return found


def test_nothing_is_sent_unless_a_collector_is_named() -> None:
    made = gateway()
    assert (made.otel_endpoint, made.otel_conventions, made.otel_content, made.otel_user) == ("", "v1.41", False, False)


def test_the_standard_variables_are_read_and_ours_go_before_them() -> None:
    standard = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.example/otlp/",
        "OTEL_SEMCONV_STABILITY_OPT_IN": "http/dup,gen_ai_latest_experimental",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_AND_EVENT",
    }
    made = gateway(**standard)
    assert made.otel_endpoint == "https://collector.example/otlp"
    assert made.otel_conventions == "latest"
    assert made.otel_content
    made = gateway(
        **standard,
        OSTIARY_OTEL_ENDPOINT="http://127.0.0.1:4318",
        OSTIARY_OTEL_CONVENTIONS="v1.41",
        OSTIARY_OTEL_CONTENT="false",
    )
    assert (made.otel_endpoint, made.otel_conventions, made.otel_content) == ("http://127.0.0.1:4318", "v1.41", False)


@pytest.mark.parametrize("word", ["http", "http/dup,database", "gen_ai_latest_experimental_no"])
def test_an_opt_in_of_others_is_none_of_ours(word: str) -> None:
    assert gateway(OTEL_SEMCONV_STABILITY_OPT_IN=word).otel_conventions == "v1.41"


@pytest.mark.parametrize(("word", "taken"), [("EVENT_ONLY", False), ("NO_CONTENT", False), ("span_only", True)])
def test_words_of_other_instrumentations_for_content(word: str, taken: bool) -> None:
    assert gateway(OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=word).otel_content is taken


@pytest.mark.parametrize("url", ["collector:4317", "grpc://h:4317", "http://user:word@h:4318", "http://h:x", "http://"])
def test_what_is_no_address_of_a_collector(url: str) -> None:
    found = problem(OTEL_EXPORTER_OTLP_ENDPOINT=url)
    assert found.startswith("OTEL_EXPORTER_OTLP_ENDPOINT must be the base URL of an OTLP/HTTP collector")


def test_who_writes_the_interception_log() -> None:
    def told(source: str, **more: str) -> tuple[bool, bool]:
        plan = server_plan(load({"structured_logging": "true", "structured_logging_source": source}, more))
        assert plan.control is not None
        return plan.control.structured_logging, plan.link.structured_logging

    assert told("control") == (True, False)
    assert told("gateway") == (False, True)
    assert told("both") == (True, True)
    off = server_plan(load({"structured_logging_source": "both"}, {}))
    assert off.control is not None
    assert not off.control.structured_logging
    assert not off.link.structured_logging


def test_a_gateway_of_its_own_writes_it_when_it_is_asked_to() -> None:
    def told(**variables: str) -> bool:
        given = {"OSTIARY_CONTROL_URL": "https://o.example", "OSTIARY_GATEWAY_KEY": "k" * 43} | variables
        return gateway_plan(load({}, given, command="gateway")).link.structured_logging

    assert not told(OSTIARY_STRUCTURED_LOGGING="true")
    assert told(OSTIARY_STRUCTURED_LOGGING="true", OSTIARY_STRUCTURED_LOGGING_SOURCE="both")
    assert told(CODER_AI_GATEWAY_STRUCTURED_LOGGING="true", CODER_AI_GATEWAY_STRUCTURED_LOGGING_SOURCE="gateway")


def test_the_reference_calls_the_control_plane_coderd() -> None:
    loaded = load({}, {"CODER_AI_GATEWAY_STRUCTURED_LOGGING_SOURCE": "coderd"})
    assert loaded.settings.structured_logging_source == "control"
    assert "must be coderd or gateway or both" in problem(CODER_AI_GATEWAY_STRUCTURED_LOGGING_SOURCE="all")
