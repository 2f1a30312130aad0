"""`ostiary top`: what goes through, and how keys, breakers and journals are, while it happens."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from shutil import get_terminal_size
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from ._app import new_app
from .client import Client
from .failure import Failure
from .output import print_json, say
from .top_frame import Line, frame
from .top_source import Look, Source, metrics_pages

if TYPE_CHECKING:
    from rich.text import Text

app = new_app()

_STYLES = {"plain": "", "title": "bold", "quiet": "dim", "bad": "red"}
_PIPE_WIDTH = 200


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end; so does output into a pipe.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one look as JSON and end.")] = False,
    window: Annotated[int, typer.Option(min=10, max=300, help="Seconds that rates are made from.")] = 20,
    interval: Annotated[float, typer.Option(min=1.0, max=60.0, help="Seconds between two looks.")] = 2.0,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            metavar="URL",
            help="The /metrics page of a gateway (its `metrics_listen`), for what it does right now. Several may be given.",
        ),
    ] = None,
) -> None:
    """Traffic, failures, keys, circuit breakers and journals of all gateways, live. Ctrl-C ends it.

    Rates are made from the records of all gateways, here and elsewhere, and are a
    second or so behind. What a single machine does right now comes from its
    /metrics page: that of a server on this machine is found by itself.
    It takes an owner's, admin's or auditor's token.

    Examples:

      ostiary top
      ostiary top --metrics 10.0.0.7:2112 --metrics 10.0.0.8:2112
      ostiary top --once
      ostiary top --json | jq .traffic.total
    """
    with Client.here() as client:
        pages, guessed = metrics_pages(metrics or [], client.place.url)
        source = Source(client, window, pages, guessed=guessed)
        try:
            first = source.look()
            if first.traffic is None and first.replicas is None and not first.machines:
                raise Failure(first.unreachable[0].why)
            if as_json:
                print_json(first.as_json())
            elif once or not sys.stdout.isatty():
                width = get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
                for line in frame(first, datetime.now(UTC), width):
                    say(line.text)
            else:
                _live(source, first, interval)
        finally:
            source.close()


def _live(source: Source, first: Look, interval: float) -> None:
    """Until Ctrl-C or SIGTERM; the terminal is as it was before then."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with (
        _ended_by_signal() as ending,
        Live(console=console, screen=True, auto_refresh=False, transient=True, redirect_stderr=False) as live,
    ):
        look = first
        while not ending.signalled:
            lines = frame(look, datetime.now(UTC), console.width, console.height)
            live.update(_text(lines), refresh=True)
            with ending.waiting():
                if not ending.signalled:
                    time.sleep(interval)
                    look = source.look()


def _text(lines: list[Line]) -> "Text":
    from rich.text import Text

    text = Text(no_wrap=True, overflow="crop")
    for number, line in enumerate(lines):
        text.append(("\n" if number else "") + line.text, _STYLES[line.tone])
    return text


class _Ending:
    """A signal ends a wait, but never the drawing of a frame: that would leave the terminal in the middle of it. One that
    comes while the interpreter cleans up raises nothing that lasts, and is known all the same."""

    def __init__(self) -> None:
        self.signalled = False
        self._waiting = False

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.signalled = True
        if self._waiting:
            raise KeyboardInterrupt

    @contextmanager
    def waiting(self) -> Iterator[None]:
        try:
            self._waiting = True
            yield
        except KeyboardInterrupt:
            pass
        finally:
            self._waiting = False


@contextmanager
def _ended_by_signal() -> Iterator[_Ending]:
    ending = _Ending()
    before = {number: signal.signal(number, ending.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
