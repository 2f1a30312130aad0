"""`ostiary providers`."""

import sys
from typing import Annotated, Any

import typer

from ostiary.core.provider_rules import DEFAULT_BASE_URLS, new_name_problem
from ostiary.core.providers import ProviderType

from ._app import new_app
from ._settings_flags import ConfigFile, load_or_fail
from .client import Client, segment
from .failure import Failure, Refused, wrong_usage
from .given import confirm, prompt_secret, read_json_object, read_keys
from .key_health import keys
from .output import AsJson, Column, ago, note, print_fields, print_json, print_table, say

app = new_app("Providers and their keys.")

_PATH = "/api/v2/ai/providers"
_KEYLESS = (ProviderType.BEDROCK, ProviderType.COPILOT)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name or id.")]
KeyEnv = Annotated[
    list[str] | None,
    typer.Option("--key-env", metavar="VARIABLE", help="Take a key from this environment variable; may be repeated."),
]
KeyFile = Annotated[
    list[str] | None,
    typer.Option("--key-file", metavar="FILE", help="Take keys from a file, one a line; - is standard input."),
]
DisplayName = Annotated[str | None, typer.Option(help="Name for people; empty for none.")]
SettingsFile = Annotated[
    str | None, typer.Option("--settings", metavar="FILE", help="Settings of its type, a JSON object; - is stdin.")
]


@app.command("list")
def list_providers(as_json: AsJson = False) -> None:
    """All providers, disabled ones too. Keys are masked.

    Example: ostiary providers list
    """
    with Client.here() as client:
        providers = client.get(_PATH)
    if as_json:
        print_json(providers)
        return
    rows = [
        (
            provider["name"],
            provider.get("effective_type", ""),
            _state(provider["status"]),
            len(provider["api_keys"]) if "api_keys" in provider else "",
            provider.get("base_url", ""),
        )
        for provider in providers
    ]
    columns = ("NAME", "TYPE", Column("STATUS", cut=True), Column("KEYS", right=True), Column("BASE URL", cut=True))
    print_table(columns, rows, "no providers; add one with: ostiary providers add NAME")


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """One provider with its keys, masked, in the order of failover.

    Example: ostiary providers show openai
    """
    with Client.here() as client:
        provider = client.get(_one(name))
    if as_json:
        print_json(provider)
        return
    keys = provider.get("api_keys") or []
    settings = provider.get("settings") or {}
    status = provider["status"]
    print_fields(
        [
            *(
                (field.replace("_", " "), provider.get(field))
                for field in ("name", "id", "type", "display_name", "base_url")
            ),
            ("status", _state(status)),
            *(("", warning) for warning in (status["warnings"] if isinstance(status, dict) else ())),
            *((f"settings {field.lstrip('_')}", value) for field, value in settings.items()),
            ("created", ago(provider.get("created_at"))),
            ("updated", ago(provider.get("updated_at"))),
        ]
    )
    if keys:
        say("")
        print_table(("KEY", "ID", "ADDED"), [(key["masked"], key["id"], ago(key["created_at"])) for key in keys], "")


app.command()(keys)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Lowercase letters, digits and hyphens; it stands in URLs.")],
    kind: Annotated[ProviderType, typer.Option("--type", help="What it is, or whose format it speaks.")],
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where it is. [default: that of the type]"),
    ] = None,
    key_env: KeyEnv = None,
    key_file: KeyFile = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="Without a key: people bring their own.")] = False,
    display_name: DisplayName = None,
    settings: SettingsFile = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Add it switched off.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add a provider. Its keys come from a variable, a file or a prompt, never from the command line.

    Examples:

      ostiary providers add openai --type openai --key-env OPENAI_API_KEY
      ostiary providers add claude --type anthropic --key-file ~/keys/anthropic
      ostiary providers add vllm --type openai-compat --base-url http://10.0.0.5:8000/v1 --no-key
      ostiary providers add azure --type azure --base-url https://RESOURCE.openai.azure.com/openai/v1 --key-env AZURE_KEY
      ostiary providers add copilot --type copilot --base-url https://api.business.githubcopilot.com

    Copilot's hosts are api.individual, api.business and api.enterprise.githubcopilot.com, by plan.
    All types: docs/providers.md.
    """
    if problem := new_name_problem(name):
        wrong_usage(f"NAME {problem}")
    url = base_url or DEFAULT_BASE_URLS.get(kind, "")
    if not url and kind is not ProviderType.BEDROCK:  # whose address goes by its region
        wrong_usage(f"--base-url is needed for a provider of type {kind.value}")
    keys = _keys(key_env, key_file)
    if no_key and keys:
        wrong_usage("--no-key and a key contradict each other")
    if not keys and not no_key and kind not in _KEYLESS:
        if not sys.stdin.isatty():
            wrong_usage(
                "a key is needed: --key-env VARIABLE or --key-file FILE, or --no-key when people bring their own"
            )
        asked = prompt_secret(f"Key of {name} (empty for none)")
        keys = [asked.reveal()] if asked else []
    body: dict[str, Any] = {
        "name": name,
        "type": kind.value,
        "base_url": url,
        "enabled": not disabled,
        "api_keys": keys,
    }
    if display_name is not None:
        body["display_name"] = display_name
    if settings is not None:
        body["settings"] = read_json_object(settings, "--settings")
    with Client.here() as client:
        provider = client.post(_PATH, body)
    if as_json:
        print_json(provider)
        return
    say(f"added {provider['name']} ({provider['type']}) with {_count_keys(provider)}")
    note(f"clients reach it at <server>/api/v2/ai-gateway/{provider['name']}")
    _note_warnings(provider)


@app.command()
def edit(
    name: Name,
    base_url: Annotated[str | None, typer.Option(metavar="URL", help="New address.")] = None,
    display_name: DisplayName = None,
    key_env: KeyEnv = None,
    key_file: KeyFile = None,
    replace_keys: Annotated[
        bool, typer.Option("--replace-keys", help="The given keys instead of the present ones, not behind them.")
    ] = False,
    remove_key: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Remove this key; may be repeated.")
    ] = None,
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Change a provider. Given keys go behind the present ones, in the order of failover. Name and type stay.

    Examples:

      ostiary providers edit openai --key-env NEW_KEY
      ostiary providers edit openai --key-env NEW_KEY --replace-keys
      ostiary providers edit openai --remove-key 0197f9a4-52cf-7000-8c5e-2f5d4a1f3a11
    """
    changes: dict[str, Any] = {}
    if base_url is not None:
        changes["base_url"] = base_url
    if display_name is not None:
        changes["display_name"] = display_name
    if settings is not None:
        changes["settings"] = read_json_object(settings, "--settings")
    new = [{"api_key": key} for key in _keys(key_env, key_file)]
    if replace_keys and not new:
        wrong_usage("--replace-keys needs the new keys: --key-env VARIABLE or --key-file FILE")
    if not (changes or new or remove_key):
        wrong_usage("nothing to change; see the options with --help")
    with Client.here() as client:
        if new or remove_key:
            kept = [] if replace_keys else _kept_keys(client.get(_one(name)), remove_key or [])
            changes["api_keys"] = [*kept, *new]
        provider = client.patch(_one(name), changes)
    if as_json:
        print_json(provider)
    else:
        say(f"changed {provider['name']}: {provider['base_url']}, {_count_keys(provider)}")
        _note_warnings(provider)


@app.command()
def enable(name: Name) -> None:
    """Let a provider serve.

    Example: ostiary providers enable openai
    """
    _set_enabled(name, True)


@app.command()
def disable(name: Name) -> None:
    """Stop a provider from serving; requests to it get 503. Nothing of it is lost.

    Example: ostiary providers disable openai
    """
    _set_enabled(name, False)


@app.command()
def remove(name: Name, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Remove a provider and its keys. What was recorded of it stays; the environment does not bring it back.

    Example: ostiary providers remove openai
    """
    confirm(f"Remove the provider {name} and its keys?", yes)
    with Client.here() as client:
        client.delete(_one(name))
    say(f"removed {name}")


@app.command("test")
def test_(name: Name, as_json: AsJson = False) -> int:
    """Call a provider once with each of its keys: which work, which do not, and why. It costs nothing.

    The server makes the calls, also for a provider that is disabled. Exit
    status 1 unless every key works.

    Example: ostiary providers test openai
    """
    with Client.here() as client:
        found = client.post(f"{_one(name)}/test")
    status = 0 if all(key["result"] == "works" for key in found["keys"]) else 1
    if as_json:
        print_json(found)
        return status
    if found["called"]:
        note(f"called: {found['called']}")
    rows = [
        (
            key["masked"] or "(no key)",
            key["result"],
            "" if key["latency_ms"] is None else f"{key['latency_ms']}ms",
            key["reason"],
            key["id"],
        )
        for key in found["keys"]
    ]
    if rows:
        print_table(
            ("KEY", "RESULT", Column("TOOK", right=True), Column("WHY", cut=True), Column("ID", drop=1)), rows, ""
        )
    for line in found["notes"]:
        note(line)
    return status


@app.command("plan")
def plan_(
    offline: Annotated[bool, typer.Option("--offline", help="Against an empty database, without a server.")] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """What a start of the server would do with the providers of this environment. Changes nothing.

    Exit status 0 when the start would go on, 1 when it would stop because a
    provider differs from its row in the database.

    Examples:

      OSTIARY_OPENAI_KEY=sk-... ostiary providers plan
      ostiary providers plan --offline --json
    """
    from .seed_plan import describe, stops, summary

    loaded = load_or_fail({}, config)
    for warning in loaded.provider_warnings:
        note(f"ostiary: warning: {warning}")
    rows: list[dict[str, Any]] = []
    if not offline:
        rows = _rows_to_compare()
    steps = describe(loaded.provider_environment, rows)
    status = stops(steps, loaded.settings.on_drift)
    if as_json:
        print_json({"steps": steps, "would_start": not status})
        return status
    columns = ("DO", "NAME", Column("BECAUSE", cut=True))
    print_table(
        columns, [(step["step"], step["name"], summary(step)) for step in steps], "the environment has no providers"
    )
    if status:
        note("the start would stop: change the provider, remove the variables, or set OSTIARY_ON_DRIFT=warn")
    return status


def _rows_to_compare() -> list[dict[str, Any]]:
    try:
        with Client.here() as client:
            rows: list[dict[str, Any]] = client.get(_PATH, deleted="true")
    except Refused:
        raise
    except Failure as failure:
        raise Failure(f"{failure.message}. Before a first start: --offline", failure.status) from None
    return rows


def _one(name: str) -> str:
    return f"{_PATH}/{segment(name)}"


def _state(status: dict[str, Any] | str) -> str:
    """A provider's status in a word, and why when it is in error. Members are told the word alone."""
    if isinstance(status, str):
        return status
    return f"{status['state']}: {status['reason']}" if status["reason"] else str(status["state"])


def _note_warnings(provider: dict[str, Any]) -> None:
    for warning in provider["status"]["warnings"]:
        note(f"warning: {warning}")


def _set_enabled(name: str, enabled: bool) -> None:
    with Client.here() as client:
        provider = client.patch(_one(name), {"enabled": enabled})
    say(f"{provider['name']} is {'enabled' if provider['enabled'] else 'disabled'}")


def _keys(variables: list[str] | None, files: list[str] | None) -> list[str]:
    return [key.reveal() for key in read_keys(variables or [], files or [])]


def _kept_keys(provider: dict[str, Any], removed: list[str]) -> list[dict[str, str]]:
    present = [key["id"] for key in provider.get("api_keys") or []]
    for key_id in removed:
        if key_id not in present:
            wrong_usage(f"{provider['name']} has no key {key_id}; its keys are: {', '.join(present) or 'none'}")
    return [{"id": key_id} for key_id in present if key_id not in removed]


def _count_keys(provider: dict[str, Any]) -> str:
    number = len(provider.get("api_keys") or [])
    return "1 key" if number == 1 else f"{number} keys"
