"""Where log lines go and how they look: the same for every process.

Rules
- One line an event, to standard error, with the component and its pid. A line is one write: lines of several
  processes do not mix. A terminal or pipe that has gone is no reason to fail a request: the line is lost.
- `Secret` prints as *** in both formats, and tracebacks show no local variables.
- Libraries that log through `logging` come out the same way, warnings and above (`debug`: info and above).
"""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ostiary.core.settings import LogSettings

# structlog.dev imports rich when it is there: 4 MB in every worker, for tracebacks that we do not want
_rich = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402

if _rich is None:
    del sys.modules["rich"]
else:
    sys.modules["rich"] = _rich

get_logger = structlog.get_logger
_STDERR = 2


def configure_logging(settings: LogSettings, component: str) -> None:
    """Set up structlog and `logging` for this process."""
    level = getattr(logging, settings.level.upper())
    identity = {"component": component, "pid": os.getpid()}

    def add_identity(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.update(identity)
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        add_identity,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer = _json_renderers() if settings.format == "json" else _console_renderers()
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_LineLogger,
        cache_logger_on_first_use=True,
    )
    handler = _LineHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(allow=())],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if settings.level == "debug" else max(level, logging.WARNING))


def _json_renderers() -> list[structlog.typing.Processor]:
    return [
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(default=str),
    ]


def _console_renderers() -> list[structlog.typing.Processor]:
    colors = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]


def _write_line(line: str) -> None:
    with suppress(OSError):
        os.write(_STDERR, line.encode("utf-8", "backslashreplace") + b"\n")


class _LineLogger:
    """What structlog hands its rendered lines to."""

    def __init__(self, *_args: object) -> None:
        write: Callable[[str], None] = _write_line
        self.debug = self.info = self.warning = self.error = self.critical = self.msg = write


class _LineHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as logging.Handler says: a bad record must not fail its caller
            self.handleError(record)
        else:
            _write_line(line)
