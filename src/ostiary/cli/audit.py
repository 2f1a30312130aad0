"""`ostiary audit`."""

from typing import Annotated

import typer

from ._app import new_app
from .client import Client
from .output import AsJson, Column, local_time, print_json, print_table

app = new_app("Who changed what.")


@app.callback()
def audit() -> None:
    """Who changed what."""


@app.command("list")
def list_entries(
    actor: Annotated[str | None, typer.Option(help="Only by this user, or `seed`, or `bootstrap`.")] = None,
    action: Annotated[str | None, typer.Option(help="Only create, update, delete, revoke ...")] = None,
    resource_type: Annotated[str | None, typer.Option("--type", help="Only ai_provider, user, token ...")] = None,
    resource: Annotated[str | None, typer.Option(help="Only of this id or name.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10000, help="How many, newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Administrative acts, newest first. `--json` has what was before and after, secrets masked.

    Examples:

      ostiary audit list
      ostiary audit list --type ai_provider --json
    """
    filters = {"actor": actor, "action": action, "resource_type": resource_type, "resource": resource}
    with Client.here() as client:
        entries = client.every("/api/v2/audit", "results", limit=limit, **filters)
    if as_json:
        print_json(entries)
        return
    rows = [
        (
            local_time(entry["at"]),
            entry["actor"],
            entry["action"],
            entry["resource_type"],
            entry["resource_name"] or entry["resource_id"],
            entry["source_ip"],
            changed_fields(entry["before"], entry["after"]),
        )
        for entry in entries
    ]
    columns = (
        "TIME",
        "WHO",
        "DID",
        "TO",
        Column("NAME", cut=True),
        Column("FROM", drop=1),
        Column("CHANGED", cut=True),
    )
    print_table(columns, rows, "nothing was changed")


def changed_fields(before: dict[str, object] | None, after: dict[str, object] | None) -> str:
    """The names of the fields that an update changed."""
    if not before or not after:
        return ""
    changed = [name for name in after if after[name] != before.get(name) and name != "updated_at"]
    return ", ".join(changed)
