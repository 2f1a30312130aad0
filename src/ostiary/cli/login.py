"""`ostiary login`: remember a server and a token."""

import os
import sys
from typing import Annotated

import typer

from ostiary.core.secret import Secret

from ._app import new_app
from .client import DEFAULT_URL, Client, Login, Place, login_file, normal_url, store_login
from .failure import Failure, wrong_usage
from .given import prompt_secret, read_secret_file
from .output import note, say

app = new_app()


@app.command()
def login(
    url: Annotated[str | None, typer.Argument(help=f"The server. [default: OSTIARY_URL or {DEFAULT_URL}]")] = None,
    token_file: Annotated[
        str | None, typer.Option("--token-file", metavar="FILE", help="Read the token from a file; - is stdin.")
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Remove what was remembered.")] = False,
) -> None:
    """Remember a server and your token, for all commands that talk to one. The token is tried first.

    It is kept in a file that only you can read. OSTIARY_URL and OSTIARY_TOKEN
    go before it.

    Examples:

      ostiary login https://ai.example.com
      ostiary login --token-file ~/.local/share/ostiary/owner-token
      ostiary login --forget
    """
    if forget:
        login_file().unlink(missing_ok=True)
        say(f"removed {login_file()}")
        return
    address = normal_url(url or os.environ.get("OSTIARY_URL") or DEFAULT_URL, "the server")
    token = _token(token_file)
    with Client(Place(address, token, "the command line", "the command line")) as client:
        me = client.get("/api/v2/users/me")
    try:
        path = store_login(Login(address, token))
    except OSError as exc:
        raise Failure(
            f"{login_file()} cannot be written: {exc.strerror}; the token is good, but not remembered"
        ) from None
    say(f"you are {me['username']} ({me['role']}) at {address}; remembered in {path}")
    if os.environ.get("OSTIARY_TOKEN"):
        note("OSTIARY_TOKEN is set and goes before it")


def _token(token_file: str | None) -> Secret:
    if token_file is not None:
        return read_secret_file(token_file, "--token-file")
    if (from_environment := os.environ.get("OSTIARY_TOKEN", "").strip()) and not sys.stdin.isatty():
        return Secret(from_environment)
    token = prompt_secret("Token")
    if token is None:
        wrong_usage("a token is needed: type it when asked, or use --token-file FILE (- for standard input)")
    return token
