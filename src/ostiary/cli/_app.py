"""How every group of commands is set up."""

import typer

CONTEXT = {"help_option_names": ["-h", "--help"]}


def new_app(help: str | None = None) -> typer.Typer:  # noqa: A002  typer's name for it
    """A group when `help` is given, else the app of a single command."""
    return typer.Typer(
        help=help,
        no_args_is_help=help is not None,
        add_completion=False,
        pretty_exceptions_enable=False,  # its tracebacks can show locals, and locals can hold secrets
        rich_markup_mode="rich",
        context_settings=CONTEXT,
    )
