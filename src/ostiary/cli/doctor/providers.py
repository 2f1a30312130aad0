"""Whether each provider can be used: every key tried by the server, and calls through the gateway itself.

Rules
- What is called of somebody's provider costs nothing (its list of models), unless `--call` names a model. The fake
  provider of `--demo` is called for real.
- A real call counts when its record has come back out of the database.
"""

import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from ostiary.cli.client import Client, is_local, segment
from ostiary.cli.failure import Failure, Refused
from ostiary.cli.output import one_line

from .findings import Finding, Group, number

RECORD_SECONDS: Final = 15.0
"""How long a call's record may take into the database."""
_TRIAL_SECONDS: Final = 40.0
_POLL: Final = 0.2
_DATA_PLANE: Final = "/api/v2/ai-gateway"
_DEMO: Final = {"demo-openai": "gpt-5.4-mini", "demo-anthropic": "claude-haiku-5-5"}

_providers, _traffic = Group("providers"), Group("traffic")

View = dict[str, Any]
"""A provider as the API shows it."""


def check(client: Client, provider: View) -> Iterator[Finding]:
    """One provider, key by key."""
    name, status = provider["name"], provider["status"]
    if status["state"] == "disabled":
        yield _providers.ok(f"{name}: disabled, not called")
        return
    if status["state"] == "error":
        yield _providers.wrong(f"{name}: {one_line(status['reason'])}", f"ostiary providers edit {name}, or disable it")
        return
    for warning in status["warnings"]:
        yield _providers.warning(f"{name}: {one_line(warning)}", f"ostiary providers edit {name} --key-file FILE")
    trial = client.ask("POST", f"/api/v2/ai/providers/{segment(name)}/test", within=_TRIAL_SECONDS)
    yield from keys(name, trial)
    if trial["called"] and any(key["result"] == "works" for key in trial["keys"]):
        yield list_models(client, name)


def keys(name: str, trial: dict[str, Any]) -> Iterator[Finding]:
    """What the trial of its keys says."""
    tried = trial["keys"]
    working = [key for key in tried if key["result"] == "works"]
    if working:
        slowest = max(key["latency_ms"] or 0 for key in working)
        what = number(len(working), "key") + (" works" if len(working) == 1 else " work")
        yield _providers.ok(f"{name}: {what if working[0]['id'] else 'answers without a key'} ({slowest} ms)")
    for key in tried:
        yield from _key(name, key)
    for text in trial["notes"]:
        if not tried or working:
            yield _providers.unchecked(f"{name}: {one_line(text, 400)}", _call_cure(name))


def _key(name: str, key: dict[str, Any]) -> Iterator[Finding]:
    which = f"key {one_line(key['masked'])}" if key["id"] else "without a key it"
    text = f"{name}: {which} {{}}: {one_line(key['reason'])}"
    result = key["result"]
    if result == "refused":
        replace = f"ostiary providers edit {name} --key-file FILE"
        cure = f"{replace} --remove-key {key['id']}" if key["id"] else replace
        yield _providers.wrong(text.format("is refused"), cure)
    elif result == "unreachable":
        cure = f"see whether the server's machine reaches it; `ostiary providers show {name}` says where it is"
        yield _providers.wrong(text.format("gets no answer"), cure)
    elif result == "limited":
        cure = "wait, raise its limit at the provider, or add a key; the gateway uses its other keys meanwhile"
        yield _providers.warning(text.format("is out of quota or limited"), cure)
    elif result != "works":
        yield _providers.warning(text.format("may or may not work"), _call_cure(name))


def _call_cure(name: str) -> str:
    return f"a real call shows it: ostiary doctor --call {name}/MODEL"


def list_models(client: Client, name: str) -> Finding:
    """The cheapest call through the data plane: token, route, key, provider, and back."""
    began = time.monotonic()
    answer = client.send("GET", f"{_DATA_PLANE}/{segment(name)}/v1/models")
    took = round((time.monotonic() - began) * 1000)
    if answer.is_success:
        return _traffic.ok(f"{name}: lists its models through the gateway ({took} ms)")
    text = f"{name}: the list of models through the gateway answers {answer.status_code}: {_said(answer)}"
    return _traffic.wrong(text, f"the key works when the server tries it: see `ostiary providers keys {name}`")


def demo_calls(providers: list[View]) -> list[tuple[str, str]]:
    """The fake providers among them, each with a model it has."""
    return [
        (one["name"], _DEMO[one["name"]])
        for one in providers
        if one["name"] in _DEMO and one["enabled"] and is_local(one["base_url"]) and urlsplit(one["base_url"]).port
    ]


def parse_call(text: str) -> tuple[str, str]:
    """`PROVIDER/MODEL`; models may have slashes of their own. Raises `Failure`."""
    name, _, model = text.partition("/")
    if not name or not model:
        raise Failure("--call takes PROVIDER/MODEL, e.g. --call openai/gpt-5.4-mini", 2)
    return name, model


def call(client: Client, providers: list[View], name: str, model: str) -> Iterator[Finding]:
    """A short real call through the data plane, and its record."""
    provider = next((one for one in providers if one["name"] == name), None)
    if provider is None:
        known = ", ".join(one["name"] for one in providers) or "none"
        yield _traffic.wrong(f"there is no provider {one_line(name)}", f"name one of: {known}")
        return
    path, body = request_of(provider["effective_type"], model)
    began = time.monotonic()
    answer = client.send("POST", f"{_DATA_PLANE}/{segment(name)}{path}", body=body, within=_TRIAL_SECONDS)
    took = round((time.monotonic() - began) * 1000)
    about = f"{name}: a call of {one_line(model)}"
    interception = answer.headers.get("x-ostiary-interception-id", "")
    explain = f"ostiary explain {interception}" if interception else f"ostiary providers test {name}"
    if not answer.is_success:
        yield _traffic.wrong(f"{about} answers {answer.status_code}: {_said(answer)}", explain)
    elif not interception:
        yield _traffic.wrong(
            f"{about} is answered without a record's id", "is it an Ostiary server that OSTIARY_URL names?"
        )
    else:
        yield _traffic.ok(f"{about} is answered ({took} ms)")
    if interception:
        yield _recorded(client, about, interception)


def request_of(effective_type: str, model: str) -> tuple[str, dict[str, Any]]:
    """Path and body of the smallest call of a provider of that type."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Answer with the word ok."}]}
    if effective_type in ("anthropic", "bedrock"):
        return "/v1/messages", body | {"max_tokens": 16}
    if effective_type == "copilot":
        return "/chat/completions", body
    # `max_tokens` is refused by newer models of OpenAI, the newer name by some of those that speak its format
    limit = "max_completion_tokens" if effective_type in ("openai", "azure") else "max_tokens"
    return "/v1/chat/completions", body | {limit: 16}


def _recorded(client: Client, about: str, interception: str) -> Finding:
    began = time.monotonic()
    while True:
        try:
            if client.get(f"{_DATA_PLANE}/interceptions/{segment(interception)}")["ended_at"]:
                return _traffic.ok(f"{about} is recorded ({round((time.monotonic() - began) * 1000)} ms later)")
        except Refused as refused:
            if refused.code != 404:
                raise
        if time.monotonic() - began > RECORD_SECONDS:
            cure = "`ostiary gateway status` says what waits to be shipped, the log of the gateway why"
            return _traffic.wrong(f"{about} is not in the record after {RECORD_SECONDS:.0f} s ({interception})", cure)
        time.sleep(_POLL)


def _said(answer: Any) -> str:  # Any: an answer of httpx, whose body anybody may have written
    """The message of an error, in whichever shape."""
    try:
        body = answer.json()
    except ValueError:
        return one_line(answer.text)
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        parts = [str(error[name]) for name in ("message", "detail") if error.get(name)]
        return one_line(": ".join(parts) or error, 400)
    return one_line(error, 400)
