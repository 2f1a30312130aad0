"""`ostiary tokens`."""

from typing import Annotated

import typer

from ._app import new_app
from .client import Client, segment
from .given import confirm
from .output import AsJson, Column, ago, note, print_json, print_table, say

app = new_app("Tokens by which people and services use the gateway.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, e.g. laptop.")],
    user: Annotated[str | None, typer.Option(help="Whose token; yours when left out.")] = None,
    lifetime: Annotated[
        str | None,
        typer.Option("--expires", metavar="DURATION", help="How long it is valid, e.g. 90d. [default: no end]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token. It is printed now and never again: Ostiary keeps only its hash.

    Examples:

      ostiary tokens create laptop
      ostiary tokens create agent --user alice --expires 90d
      export ANTHROPIC_AUTH_TOKEN=$(ostiary tokens create claude-code)
    """
    body = {"name": name}
    body |= {field: value for field, value in (("user", user), ("lifetime", lifetime)) if value}
    with Client.here() as client:
        token = client.post("/api/v2/tokens", body)
    if as_json:
        print_json(token)
        return
    note(f"token {token['name']} of {token['username']}, shown only now:")
    say(token["token"])


@app.command("list")
def list_tokens(
    user: Annotated[str | None, typer.Option(help="Whose; yours when left out.")] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Of everybody.")] = False,
    revoked: Annotated[bool, typer.Option(help="Also those that were revoked.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tokens with their ids, without the tokens themselves.

    Examples:

      ostiary tokens list
      ostiary tokens list --user alice
    """
    whose = "all" if everybody else user
    with Client.here() as client:
        tokens = client.every("/api/v2/tokens", "tokens", user=whose, revoked="true" if revoked else None)
    if as_json:
        print_json(tokens)
        return
    rows = [
        (
            token["id"],
            token["username"],
            token["name"],
            token["prefix"] + "…" if token["prefix"] else "",
            "revoked" if token["revoked_at"] else ago(token["expires_at"]) or "never",
            ago(token["created_at"]),
        )
        for token in tokens
    ]
    columns = (
        "ID",
        Column("USER", cut=True),
        Column("NAME", cut=True),
        Column("TOKEN", drop=1),
        "ENDS",
        Column("CREATED", drop=2),
    )
    print_table(columns, rows, "no tokens")


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="From `ostiary tokens list`.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """End a token now and for good.

    Example: ostiary tokens revoke 0197f9a4-52cf-7000-8c5e-2f5d4a1f3a11
    """
    confirm(f"Revoke the token {token_id}?", yes)
    with Client.here() as client:
        client.delete(f"/api/v2/tokens/{segment(token_id)}")
    say(f"revoked {token_id}")
