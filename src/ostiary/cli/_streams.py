"""Standard output and error as a command finds them: closed, of a small character set, on a full disk.

Rules
- What a command has done stands, whatever becomes of its text; a text that is lost is said and is exit status 1.
- A character that the terminal's character set lacks is shown as `?`; it ends no command.
"""

import io
import os
import sys
from pathlib import Path


def prepare() -> None:
    """Make both streams usable. Before the first write."""
    # nobody reads what goes to a stream that was closed for us; its number must not become that of another file
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open as long as the process
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def abandon_output() -> None:
    """Drop what standard output could not take: the interpreter would try again at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def output_problem() -> str:
    """Why standard output cannot be written, now that a write has failed; empty when that was not the reason."""
    try:
        sys.stdout.write("\n")  # what the failed write held is dropped, and flushing nothing always works
        sys.stdout.flush()
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""
