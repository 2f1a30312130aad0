"""Finds secrets where none may be.

`Hunt` knows secrets by name, in clear and as base64, hex, URL or JSON would carry them; `look` notes where one shows.
"""

import base64
import json
import os
from pathlib import Path
from urllib.parse import quote, quote_plus

DRAWN = "CRASH_TEST_DRAWN_SECRETS"
"""Variable that names the file in which `recording_draws` notes what was drawn."""

_RECORDER = f"""
import os, secrets
_draw = secrets.token_urlsafe
def token_urlsafe(size=None):
    value = _draw(size)
    with open(os.environ["{DRAWN}"], "a") as file:
        file.write(value + "\\n")
    return value
if "{DRAWN}" in os.environ:
    secrets.token_urlsafe = token_urlsafe
"""


def recording_draws(directory: Path) -> dict[str, str]:
    """Variables with which a Python process notes each secret that it draws, so that a test can look for it."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(_RECORDER)
    path = os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, DRAWN: str(directory / "drawn")}


def drawn(directory: Path) -> list[str]:
    return (directory / "drawn").read_text().split()


class Hunt:
    def __init__(self) -> None:
        self._needles: dict[bytes, str] = {}
        self.found: list[str] = []
        self.looked_at: dict[str, int] = {}
        """How many bytes of each kind of place were looked at."""

    def know(self, name: str, value: str | bytes) -> None:
        raw = value.encode() if isinstance(value, str) else value
        assert len(raw) >= 16, f"{name} is too short to be told from chance"
        forms = {raw, raw.hex().encode(), raw.hex().upper().encode(), base64.b64encode(raw).rstrip(b"=")}
        forms.add(base64.urlsafe_b64encode(raw).rstrip(b"="))
        if isinstance(value, str):
            forms |= {quote(value, safe="").encode(), quote_plus(value).encode(), json.dumps(value)[1:-1].encode()}
        for form in forms:
            self._needles[form] = name

    @property
    def names(self) -> set[str]:
        return set(self._needles.values())

    def look(self, kind: str, place: str, data: bytes) -> None:
        """`kind` of place, and which one."""
        self.looked_at[kind] = self.looked_at.get(kind, 0) + len(data)
        for needle, name in self._needles.items():
            at = data.find(needle)
            if at >= 0:
                around = data[max(0, at - 120) : at].decode(errors="replace")
                self.found.append(f"{name} in {kind} {place}, after: {around!r}")

    def look_below(self, kind: str, directory: Path, without: set[str]) -> None:
        """Every file below a directory but those, by relative path."""
        for top, _, files in os.walk(directory):
            for name in files:
                path = Path(top, name)
                relative = str(path.relative_to(directory))
                if relative not in without and path.is_file():
                    self.look(kind, relative, path.read_bytes())
