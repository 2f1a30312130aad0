"""`ostiary users`."""

from typing import Annotated, Any, Literal

import typer

from ._app import new_app
from .client import Client, segment
from .failure import wrong_usage
from .given import confirm
from .output import AsJson, Column, ago, print_fields, print_json, print_table, say

app = new_app("People and services.")

Role = Literal["owner", "admin", "auditor", "member"]
User = Annotated[str, typer.Argument(metavar="USER", help="Username or id.")]
RoleOption = typer.Option(
    "--role",
    help="owner: everything; admin: providers, users, settings; auditor: reads all records; member: uses the gateway.",
)


@app.command("list")
def list_users(as_json: AsJson = False) -> None:
    """Everybody, with role and status.

    Example: ostiary users list
    """
    with Client.here() as client:
        users = client.every("/api/v2/users", "users")
    if as_json:
        print_json(users)
        return
    rows = [(user["username"], user["role"], user["status"], user["email"], ago(user["created_at"])) for user in users]
    columns = ("USERNAME", "ROLE", "STATUS", Column("EMAIL", cut=True, drop=2), Column("CREATED", drop=1))
    print_table(columns, rows, "no users")


@app.command()
def show(user: User, as_json: AsJson = False) -> None:
    """One person or service.

    Example: ostiary users show alice
    """
    with Client.here() as client:
        _print_user(client.get(f"/api/v2/users/{segment(user)}"), as_json)


@app.command()
def create(
    username: Annotated[str, typer.Argument(help="Letters, digits, dots, hyphens and underscores.")],
    email: Annotated[str, typer.Option(help="Where to reach them.")] = "",
    role: Annotated[Role, RoleOption] = "member",
    display_name: Annotated[str, typer.Option(help="Their name as people write it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Add a person or service. A token for them: `ostiary tokens create NAME --user USERNAME`.

    Examples:

      ostiary users create alice --email alice@example.com
      ostiary users create ci --role member
    """
    body = {"username": username, "role": role}
    body |= {name: value for name, value in (("email", email), ("display_name", display_name)) if value}
    with Client.here() as client:
        user = client.post("/api/v2/users", body)
    if as_json:
        print_json(user)
    else:
        say(f"created {user['username']} ({user['role']})")


@app.command()
def edit(
    user: User,
    email: Annotated[str | None, typer.Option(help="New address; empty for none.")] = None,
    role: Annotated[Role | None, RoleOption] = None,
    display_name: Annotated[str | None, typer.Option(help="New name; empty for none.")] = None,
) -> None:
    """Change a person's role, address or name. The username stays.

    Example: ostiary users edit alice --role auditor
    """
    given = (("email", email), ("role", role), ("display_name", display_name))
    changes = {name: value for name, value in given if value is not None}
    if not changes:
        wrong_usage("nothing to change: give --email, --role or --display-name")
    with Client.here() as client:
        changed = client.patch(f"/api/v2/users/{segment(user)}", changes)
    say(f"changed {changed['username']} ({changed['role']})")


@app.command()
def suspend(user: User) -> None:
    """Close the door for a person at once; their tokens answer 403 until they are activated.

    Example: ostiary users suspend alice
    """
    _set_status(user, "suspended")


@app.command()
def activate(user: User) -> None:
    """Open the door again for a suspended person.

    Example: ostiary users activate alice
    """
    _set_status(user, "active")


@app.command()
def delete(user: User, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Remove a person for good. Their tokens end; what was recorded of them stays.

    Example: ostiary users delete alice
    """
    confirm(f"Delete the user {user} and end all their tokens?", yes)
    with Client.here() as client:
        client.delete(f"/api/v2/users/{segment(user)}")
    say(f"deleted {user}")


def _set_status(user: str, status: str) -> None:
    with Client.here() as client:
        changed = client.patch(f"/api/v2/users/{segment(user)}", {"status": status})
    say(f"{changed['username']} is {changed['status']}")


def _print_user(user: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(user)
    else:
        print_fields([(name.replace("_", " "), value) for name, value in user.items()])
