"""Messages with secrets in them give nothing away when they are printed, and still travel whole."""

import io
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from google.protobuf.message import Message

from ostiary.rpc import ostiary_pb2 as pb
from ostiary.rpc.redaction import SECRET_BEARING, holds_secrets

SECRET = "sk-never-to-be-seen-0123456789"
KEY = pb.AIProviderKey(id="k", value=SECRET)
BEDROCK = pb.AIProviderKindBedrock(region="us-east-1", access_key="AKIA" + SECRET, access_key_secret=SECRET)
PROVIDER = pb.AIProvider(name="a", keys=[KEY], bedrock=BEDROCK)
MESSAGES: list[Message] = [
    KEY,
    BEDROCK,
    PROVIDER,
    pb.GetAIProvidersResponse(revision=1, providers=[PROVIDER]),
    pb.RecordBatch(journal_id="j", records=[SECRET.encode()]),
]
PRINTS: list[Callable[[Any], str]] = [
    str,
    repr,
    "{}".format,
    "{!r:>100}".format,
    lambda message: "%s %r" % (message, message),  # noqa: UP031 - that is what is tried
    lambda message: str([message, {"message": message}]),
    lambda message: json.dumps({"message": message}, default=str),
    lambda message: str(ValueError("cannot use", message)),
    lambda message: str(type(message).FromString(message.SerializeToString())),
]


def names(found: Message) -> str:
    return type(found).__name__


@pytest.mark.parametrize("printed", PRINTS)
@pytest.mark.parametrize("message", MESSAGES, ids=names)
def test_it_prints_redacted(message: Message, printed: Callable[[Any], str]) -> None:
    text = printed(message)
    assert SECRET not in text
    assert f"<{type(message).__name__} redacted>" in text


def test_so_do_the_lists_in_it() -> None:
    response = pb.GetAIProvidersResponse(providers=[PROVIDER])
    for shown in (response.providers, response.providers[0].keys, response.ListFields(), response.providers[0].bedrock):
        assert SECRET not in f"{shown} {shown!r}"


@pytest.mark.parametrize("message", MESSAGES, ids=names)
def test_neither_logger_shows_it(message: Message) -> None:
    out = io.StringIO()
    for renderer in (structlog.processors.JSONRenderer(default=str), structlog.dev.ConsoleRenderer()):
        log = structlog.wrap_logger(structlog.PrintLogger(out), processors=[renderer])
        log.info("answering", answer=message, many=[message])
    logger = logging.Logger("redaction")
    logger.addHandler(logging.StreamHandler(out))
    logger.warning("answering %s %r", message, [message])
    assert "redacted" in out.getvalue()
    assert SECRET not in out.getvalue()


def test_whatever_can_hold_a_secret_is_covered() -> None:
    kinds = pb.DESCRIPTOR.message_types_by_name
    found = {name for name, descriptor in kinds.items() if holds_secrets(descriptor)}
    assert found == {names(message) for message in MESSAGES}
    assert found >= SECRET_BEARING
    for name, descriptor in kinds.items():
        for field in descriptor.fields:
            # a new field with such a name belongs into a message that is listed
            if any(word in field.name for word in ("access_key", "secret", "token", "password")):
                assert name in found or field.name == "token_sha256", f"{name}.{field.name}"


def test_the_others_print_as_ever_and_all_travel_whole() -> None:
    assert "acked_seq: 7" in str(pb.RecordAck(acked_seq=7))
    assert pb.AIProviderKey.FromString(KEY.SerializeToString()).value == SECRET
