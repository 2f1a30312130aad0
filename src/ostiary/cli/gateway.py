"""`ostiary gateway`: run a gateway away from its server, and the keys by which the server knows one."""

from typing import Annotated

import typer

from ostiary.config import Loaded
from ostiary.config.plan import gateway_plan

from ._app import new_app
from ._settings_flags import with_settings_flags
from .client import Client, segment
from .failure import Failure
from .gateway_status import status
from .given import confirm
from .output import AsJson, Column, ago, note, print_json, print_table, say

app = new_app("Gateways away from the server, and the keys by which the server knows them.")
keys = new_app("Keys of gateways.")
app.add_typer(keys, name="keys")

_PATH = "/api/v2/ai-gateway/keys"


def start(loaded: Loaded) -> int:
    """Start a gateway on this machine that belongs to a server elsewhere.

    It serves what the server tells it, keeps its records on disk until the server
    has them, and serves on while the server is away. Runs until SIGTERM or Ctrl-C;
    ends by itself when the server refuses its key: docs/standalone.md.

    Examples:

      ostiary gateway start --url https://ostiary.example --key-file /run/secrets/gateway-key
      OSTIARY_GATEWAY_KEY=... ostiary gateway start --url https://ostiary.example --listen 0.0.0.0:4001
    """
    from ostiary.runtime.supervisor import run

    return run(gateway_plan(loaded))


app.command()(with_settings_flags(start, "gateway"))

app.command()(status)


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, e.g. the site or deployment.")],
    as_json: AsJson = False,
) -> None:
    """Make a gateway key. It is printed now and never again: Ostiary keeps only its hash.

    Replicas of one deployment may share a key.

    Examples:

      ostiary gateway keys create berlin
      ostiary gateway keys create berlin > gateway-key
    """
    with Client.here() as client:
        key = client.post(_PATH, {"name": name})
    if as_json:
        print_json(key)
        return
    note(f"gateway key {key['name']}, shown only now:")
    say(key["key"])


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Gateway keys, without the keys themselves, and when a gateway last used each.

    Example: ostiary gateway keys list
    """
    found = _keys()
    if as_json:
        print_json(found)
        return
    rows = [
        (key["name"], key["key_prefix"] + "…", ago(key["last_heartbeat_at"]) or "never", ago(key["created_at"]))
        for key in found
    ]
    print_table((Column("NAME", cut=True), "KEY", "LAST SEEN", Column("CREATED", drop=1)), rows, "no gateway keys")


@keys.command()
def delete(
    name: Annotated[str, typer.Argument(help="From `ostiary gateway keys list`.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """End a gateway key now and for good. Gateways that still use it finish their requests and end.

    Example: ostiary gateway keys delete berlin
    """
    confirm(f"Delete the gateway key {name}? Gateways that use it will end.", yes)
    found = next((key for key in _keys() if key["name"] == name), None)
    if found is None:
        raise Failure(f"there is no gateway key {name!r}; see: ostiary gateway keys list")
    with Client.here() as client:
        client.delete(f"{_PATH}/{segment(found['id'])}")
    say(f"deleted {name}")


def _keys() -> list[dict[str, str]]:
    with Client.here() as client:
        found: list[dict[str, str]] = client.get(_PATH)
    return found
