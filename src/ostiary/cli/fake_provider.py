"""`ostiary fake-provider`."""

from typing import Annotated, Literal

import typer

from ostiary.core.settings import FakeSettings, LogSettings

from ._app import new_app
from .failure import Failure, wrong_usage
from .output import note

app = new_app()


@app.command()
def fake_provider(
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where it listens.")] = "127.0.0.1:4010",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="The least severe lines written.")
    ] = "info",
) -> int:
    """Start a provider that answers like OpenAI and Anthropic, without a key and without cost.

    It speaks Chat Completions, Responses and Messages, blocking and streaming.
    What it answers can be asked for in the request: docs/fake-provider.md.

    Examples:

      ostiary fake-provider
      ostiary fake-provider --listen 127.0.0.1:4020
    """
    import uvloop

    from ostiary.fake.process import run_command
    from ostiary.runtime.logs import configure_logging
    from ostiary.runtime.plan import Address

    try:
        address = Address.parse(listen)
    except ValueError as exc:
        wrong_usage(f"--listen: {exc}")
    log = LogSettings(level=log_level)
    configure_logging(log, "fake")
    try:
        return uvloop.run(
            run_command(
                address.host,
                address.port,
                FakeSettings(log=log),
                lambda url: note(f"fake provider on {url}; Ctrl-C ends it"),
            )
        )
    except OSError as exc:
        raise Failure(f"cannot listen on {address}: {exc.strerror}; choose another address with --listen") from None
