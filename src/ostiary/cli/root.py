"""`ostiary`: the commands, and how each of them ends."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.main import get_command

from ostiary import __version__
from ostiary.core.build import BUILD

from . import _streams
from ._app import CONTEXT
from ._lazy import Entry, lazy_group
from .failure import Failure

_RUN = "Run"
_MANAGE = "Manage"
_RECORD = "Read the record"
_HERE = "ostiary.cli"

ENTRIES = {
    "server": Entry(f"{_HERE}.server", "Start gateway, control plane and database on this machine.", _RUN),
    "gateway": Entry(f"{_HERE}.gateway", "Start a gateway for a server elsewhere; keys of such gateways.", _RUN),
    "fake-provider": Entry(f"{_HERE}.fake_provider", "Start a fake provider to try things against.", _RUN),
    "config": Entry(f"{_HERE}.config_command", "Show the settings of `ostiary server`, or check them.", _RUN),
    "doctor": Entry(f"{_HERE}.doctor", "Check a running installation, and say how to mend it.", _RUN),
    "login": Entry(f"{_HERE}.login", "Remember a server and your token for the commands below.", _MANAGE),
    "providers": Entry(f"{_HERE}.providers", "Providers and their keys.", _MANAGE),
    "users": Entry(f"{_HERE}.users", "People and services.", _MANAGE),
    "tokens": Entry(f"{_HERE}.tokens", "Tokens by which people and services use the gateway.", _MANAGE),
    "vault": Entry(f"{_HERE}.vault", "The keys that encrypt at rest, and their rotation.", _MANAGE),
    "sessions": Entry(f"{_HERE}.sessions", "Sessions of agents: threads, prompts, tool calls, tokens.", _RECORD),
    "interceptions": Entry(f"{_HERE}.interceptions", "Single calls and all that is recorded of them.", _RECORD),
    "explain": Entry(f"{_HERE}.explain", "Why a call went where it went, and what took its time.", _RECORD),
    "top": Entry(f"{_HERE}.top", "Traffic, keys, breakers and journals, live.", _RECORD),
    "storage": Entry(f"{_HERE}.storage", "How much room the record takes, and how far back it goes.", _RECORD),
    "audit": Entry(f"{_HERE}.audit", "Who changed what.", _RECORD),
}

app = typer.Typer(
    cls=lazy_group(ENTRIES),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=CONTEXT,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ostiary {__version__} ({BUILD})")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Ostiary, an AI gateway: keeps provider keys, attributes and records every call, relays the provider's own bytes.

    Try it without any provider key:

      ostiary server --demo
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its status."""
    _streams.prepare()
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives its exit status."""
    try:
        result: Any = get_command(app).main(
            None if arguments is None else list(arguments), prog_name="ostiary", standalone_mode=False
        )
    except Failure as failure:
        _complain(failure.message)
        return failure.status
    except typer.TyperException as wrong:
        return _report_usage(wrong)
    except typer.Abort:
        _complain("stopped, nothing was done")
        return 1
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            return 0  # the reader, `head` for one, has seen enough; the library makes a failure of it
        raise
    except OSError:
        problem = _streams.output_problem()
        if not problem:
            raise
        _streams.abandon_output()
        _complain(f"standard output cannot be written: {problem.lower()}")
        return 1
    return result if isinstance(result, int) else 0


def _where_given(option: str, command_path: str) -> str:
    from ._settings_flags import where_given  # only those who call wrongly wait for it

    return where_given(option, command_path)


def _complain(message: str) -> None:
    typer.echo(f"ostiary: {message}", err=True)


def _report_usage(wrong: typer.TyperException) -> int:
    context = getattr(wrong, "ctx", None)
    if type(wrong).__name__ == "NoArgsIsHelpError":  # its message is the help text
        typer.echo(wrong.format_message())
        return 2
    message = wrong.message if getattr(wrong, "option_name", None) else wrong.format_message()
    message = message.replace(": Value error, ", ": ")  # the library's own word for what its cause says
    option = getattr(wrong, "option_name", "") or ""
    if option and context is not None:
        known = [name for parameter in context.command.params for name in (*parameter.opts, *parameter.secondary_opts)]
        close = get_close_matches(option, known, n=1, cutoff=0.65)
        cure = _where_given(option, context.command_path) or (f"did you mean {close[0]}?" if close else "")
        message = message.rstrip(".") + (f"; {cure}" if cure else "")
    hint = f" (see: {context.command_path} --help)" if context is not None else ""
    _complain(" ".join(message.split()) + hint)
    return wrong.exit_code
