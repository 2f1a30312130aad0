"""What the person who started the server reads: notes, the banner, the reason of an end."""

import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ostiary.core.messages import Note

from .plan import ServerPlan, public_url


class Terminal:
    """Standard output and standard error of the command. Writing to one that has gone is not an error."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr

    @property
    def attached(self) -> bool:
        """Whether a person watches."""
        return self._out.isatty()

    def note(self, note: Note) -> None:
        if self.attached or not note.only_terminal:
            _write(self._out, note.message)

    def banner(self, text: str) -> None:
        _write(self._out, text)

    def failure(self, message: str) -> None:
        _write(self._err, f"ostiary: {message}")


def _write(stream: TextIO, text: str) -> None:
    with suppress(OSError, ValueError):  # ValueError: closed
        stream.write(text + "\n")
        stream.flush()


def banner(plan: ServerPlan, data_dir: Path) -> str:
    """The lines that say: it serves, and where everything is."""
    url = public_url(plan)
    lines = [f"Ostiary is ready on {url}"]
    control = plan.control
    if control is not None:
        token_file = data_dir / "owner-token"
        lines.append(f"  API and its documentation   {url}/docs")
        if control.bootstrap_token:
            lines.append("  token of the owner          the one of OSTIARY_BOOTSTRAP_TOKEN")
        elif token_file.exists():
            lines.append(f"  token of the owner          {token_file}")
    if plan.metrics_listen is not None:
        lines.append(f"  metrics                     http://{plan.metrics_listen}/metrics")
    if control is not None and control.demo_providers:
        names = " and ".join(provider.name for provider in control.demo_providers)
        token = "$OSTIARY_BOOTSTRAP_TOKEN" if control.bootstrap_token else f"$(cat {shlex.quote(str(token_file))})"
        lines.append(f"  demo providers              {names}, answered by a fake provider on this machine")
        lines.append(_try_it(url, control.demo_providers[0].name, token))
    return "\n".join(lines)


def _try_it(url: str, provider: str, token: str) -> str:
    return (
        "  try it\n"
        f"    curl -N {url}/api/v2/ai-gateway/{provider}/v1/chat/completions \\\n"
        f'      -H "Authorization: Bearer {token}" -H "Content-Type: application/json" \\\n'
        """      -d '{"model": "gpt-5.4-mini", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'\n"""
        f'    curl {url}/api/v2/ai-gateway/interceptions -H "Authorization: Bearer {token}"'
    )
