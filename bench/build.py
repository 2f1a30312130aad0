"""Which code is measured: a directory that holds the package `ostiary`, put first on the path of what is started.

Rules
- A directory that is named (`--site`) is taken as it is. Else the newest wheel with compiled modules in `dist/`, as
  `make wheel` leaves it; else, and with `--interpreted`, the source tree.
- What was built is found out by asking a started interpreter where a module of the request path comes from.
- A wheel whose Python files differ from the source tree's is measured all the same, and the figures say so.
"""

import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import interpreter
from .children import StartError

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
_PROBE = "import ostiary.http1.head as head; print(head.__file__)"
_VERSION = "from importlib.metadata import version; print(version('ostiary'))"

Kind = Literal["compiled", "interpreted"]


@dataclass(frozen=True)
class Build:
    """One build of Ostiary."""

    kind: Kind
    site: Path
    origin: str
    """What the figures call it: the wheel's name, or the directory's."""
    stale: int = 0
    """Python files in it that differ from the source tree's."""

    def environment(self) -> dict[str, str]:
        """That of this process, with the build first on the path of `interpreter.python()`."""
        return interpreter.environment(self.site)

    def version(self) -> str:
        return _ask(self.site, _VERSION)

    def describe(self) -> str:
        """For the list of versions."""
        text = f"{self.version()}, {self.kind} ({self.origin})"
        return f"{text}; {self.stale} of its files differ from the source tree's" if self.stale else text


def of_site(site: Path, origin: str = "") -> Build:
    """The build in a directory. Raises `StartError` when there is none."""
    site = site.resolve()
    if not (site / "ostiary" / "__init__.py").exists():
        raise StartError(f"{site} holds no package `ostiary`")
    module = _ask(site, _PROBE)
    if not Path(module).is_relative_to(site):
        raise StartError(f"{site} is not what an interpreter takes `ostiary` from: that is {module}")
    kind: Kind = "interpreted" if module.endswith(".py") else "compiled"
    return Build(kind, site, origin or site.name, differing(site, SOURCE))


def source() -> Build:
    """The source tree, interpreted."""
    return of_site(SOURCE, "source tree")


def of_wheel(wheel: Path, folder: Path) -> Build:
    """The build in a wheel, unpacked below `folder`."""
    site = folder / wheel.stem
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    return of_site(site, wheel.name)


def newest_wheel(dist: Path = ROOT / "dist") -> Path | None:
    """The newest wheel that is made for one platform: it has compiled modules."""
    found = [wheel for wheel in dist.glob("ostiary-*.whl") if not wheel.stem.endswith("-any")]
    return max(found, key=lambda wheel: wheel.stat().st_mtime, default=None)


def chosen(folder: Path, *, site: Path | None, interpreted: bool) -> Build:
    """The build to measure; `folder` takes what is unpacked. Raises `StartError`."""
    if site is not None:
        return of_site(site)
    wheel = None if interpreted else newest_wheel()
    return source() if wheel is None else of_wheel(wheel, folder)


def differing(site: Path, tree: Path) -> int:
    """How many Python files of the package have another content in `site` than in `tree`."""
    if site == tree:
        return 0
    count = 0
    for file in (site / "ostiary").rglob("*.py"):
        twin = tree / file.relative_to(site)
        if not twin.exists() or twin.read_bytes() != file.read_bytes():
            count += 1
    return count


def _ask(site: Path, question: str) -> str:
    """What an interpreter prints that takes `ostiary` from `site`."""
    told = subprocess.run(
        [str(interpreter.python()), "-c", question],
        env=interpreter.environment(site),
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        raise StartError(f"the build in {site} cannot be imported:\n{told.stderr.strip()[-800:]}")
    return told.stdout.strip()
