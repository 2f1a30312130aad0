"""Flag > environment > `ostiary.toml` > default, with every wrong setting reported at once.

Rules
- A problem names what the operator wrote (flag, variable or file key) and what is allowed there.
- The value that was given is quoted, except of a secret or of what may be a URL with a password: they stand in no
  message, and no exception that could hold one is chained.
- What is unknown is an error where only we write names (flags, file keys, `OSTIARY_PROVIDER_<N>_...`), and a warning
  among other variables: Kubernetes injects names that begin like ours.
"""

import re
import ssl
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from ostiary.core.provider_env import ProviderEnvError, read_provider_environment
from ostiary.core.secret import Secret

from . import values
from .installation_settings import GATEWAY_LISTEN
from .setting import Command, Setting
from .settings import MIGRATION_PREFIXES, PREFIX, SETTINGS, Settings, default_data_dir, flag, settings_of, variable

CONFIG_VARIABLE = PREFIX + "CONFIG"
CLIENT_VARIABLES = (PREFIX + "URL", PREFIX + "TOKEN")
"""Read by the client commands, not by the server."""
FILE_NAME = "ostiary.toml"
SYSTEM_FILE = Path("/etc/ostiary") / FILE_NAME

PLANNED = frozenset(("public_url",))
"""Names of the design that have no effect yet."""

_PROVIDER_NAME = re.compile(r"(PROVIDER_|OPENAI_|ANTHROPIC_|BEDROCK_)")


class ConfigError(Exception):
    """The settings cannot be used. `problems` has a line for each, none of them with a secret."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Given:
    """A value as the operator gave it, and where."""

    value: Any  # Any: text, or whatever TOML holds; the setting's kind parses it
    origin: str
    """flag, environment or file, for people: `--workers`, `OSTIARY_WORKERS`, `workers in /etc/ostiary/ostiary.toml`."""


@dataclass(frozen=True)
class Loaded:
    """Settings that can be used, and what there is to say about them."""

    settings: Settings
    origins: Mapping[str, str]
    """Where each setting that has not its default comes from."""
    provider_environment: Mapping[str, Secret]
    """The variables that describe providers, by full name, as found."""
    file: Path | None
    warnings: tuple[str, ...] = ()
    provider_warnings: tuple[str, ...] = ()
    """About the provider variables; seeding logs them too."""


@dataclass
class _Findings:
    given: dict[str, Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, name: str, given: Given) -> None:
        """The first source that gives a setting wins."""
        self.given.setdefault(name, given)


class _Source(PydanticBaseSettingsSource):
    """Values found already; pydantic-settings merges and checks them."""

    def __init__(self, settings_cls: type[BaseSettings], found: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        self._found = dict(found)

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002  its signature
        return self._found.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._found


def load(
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    *,
    file: Path | None = None,
    command: Command = "server",
) -> Loaded:
    """The settings of `ostiary server`, or of `ostiary gateway start`.

    `flags` has what was given on the command line, by setting name; `file` the `--config` flag. Settings of the other
    command are left alone: one environment or file may serve both. Raises `ConfigError`.
    """
    findings = _Findings()
    for name, value in flags.items():
        findings.add(name, Given(value, flag(name)))
    _read_environment(environ, findings, command)
    path = _find_file(file, environ, findings)
    if path is not None:
        _read_file(path, findings, command)
    defaults: dict[str, Any] = {"data_dir": default_data_dir(environ, command)}
    if command == "gateway":
        defaults["listen"] = str(GATEWAY_LISTEN)
    settings = _check(findings, defaults)
    _check_together(findings, settings)
    variables = provider_variables(environ)
    provider_warnings: tuple[str, ...] = ()
    if command == "gateway":
        settings = _check_gateway(findings, settings)
        if variables:
            findings.warnings.append(
                f"{next(iter(variables))} and its like have no effect on a gateway: "
                "the server says which providers there are"
            )
            variables = {}
    else:
        provider_warnings = _check_providers(variables, findings)
    if settings is None or findings.problems:
        raise ConfigError(findings.problems)
    return Loaded(
        settings=settings,
        origins={name: given.origin for name, given in findings.given.items()},
        provider_environment=variables,
        file=path,
        warnings=tuple(findings.warnings),
        provider_warnings=provider_warnings,
    )


def provider_variables(environ: Mapping[str, str]) -> dict[str, Secret]:
    """The variables of the environment that describe providers (reference C.6), known or not, by full name."""
    return {
        name: Secret(value)
        for name, value in sorted(environ.items())
        if (split := _split_prefix(name)) and _PROVIDER_NAME.match(split[1])
    }


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing when no known name is close. A prefix in common makes none close."""
    prefix, own = _split_prefix(word) or ("", word)
    names: dict[str, str] = {}
    for name in known:
        its_prefix, rest = _split_prefix(name) or ("", name)
        if its_prefix == prefix or rest not in names:
            names[rest] = name
    close = get_close_matches(own, names, n=1, cutoff=0.7)
    return f"; did you mean {names[close[0]]}?" if close else ""


def _split_prefix(name: str) -> tuple[str, str] | None:
    for prefix in (PREFIX, *MIGRATION_PREFIXES):
        if name.startswith(prefix):
            return prefix, name[len(prefix) :]
    return None


def _read_environment(environ: Mapping[str, str], findings: _Findings, command: Command) -> None:
    # an empty variable is an unset one: compose files and charts pass them on empty
    known: set[str] = {CONFIG_VARIABLE, *CLIENT_VARIABLES}
    wanted = settings_of(command)
    for name, setting in SETTINGS.items():
        known.add(variable(name))
        known.update(prefix + suffix for suffix, _ in setting.migration for prefix in MIGRATION_PREFIXES)
        if name not in wanted:
            continue
        ours = [Given(value, var) for var in (variable(name),) if (value := environ.get(var))]
        migrated = []
        for suffix, words in setting.migration if setting.migration_only in (None, command) else ():
            migrated += [
                _translated(Given(value, prefix + suffix), words, findings)
                for prefix in MIGRATION_PREFIXES
                if (value := environ.get(prefix + suffix))
            ]
        found = ours + [given for given in migrated if given is not None]
        for other in found[1:]:
            if _parsed(setting, other.value) != _parsed(setting, found[0].value):
                findings.problems.append(f"{found[0].origin} and {other.origin} say different things; keep one of them")
        others = [Given(value, var) for var in setting.also if (value := environ.get(var))]
        for given in (found + others)[:1]:
            findings.add(name, given)
    for name in sorted(environ):
        split = _split_prefix(name)
        if split is None or name in known or _PROVIDER_NAME.match(split[1]):
            continue
        if split[1].lower() in PLANNED:
            findings.warnings.append(f"{name} is not supported yet and has no effect")
        else:
            findings.warnings.append(f"{name} is not a setting of ours and has no effect{suggestion(name, known)}")


def _parsed(setting: Setting, value: object) -> object:
    """The value to compare two spellings by; the text itself when it is wrong, which is reported later."""
    try:
        return setting.kind.parse(value)
    except ValueError:
        return value


def _translated(given: Given, words: Mapping[str, str] | None, findings: _Findings) -> Given | None:
    """A value of a migration name whose words mean something else here."""
    if words is None:
        return given
    word = {"t": "true", "1": "true", "f": "false", "0": "false"}.get(given.value.lower(), given.value.lower())
    if word not in words:
        findings.problems.append(f"{given.origin} must be {' or '.join(words)}; it is {given.value!r}")
        return None
    return Given(words[word], given.origin)


def _find_file(path: Path | None, environ: Mapping[str, str], findings: _Findings) -> Path | None:
    """The file that was named, else `ostiary.toml` of the working directory, else the system's."""
    named, origin = path, "--config"
    if named is None and environ.get(CONFIG_VARIABLE):
        named, origin = Path(environ[CONFIG_VARIABLE]).expanduser(), CONFIG_VARIABLE
    if named is not None:
        if named.is_file():
            return named
        findings.problems.append(f"{origin} must be a file that this user can read; {named} is none")
        return None
    return next((candidate for candidate in (Path(FILE_NAME), SYSTEM_FILE) if candidate.is_file()), None)


def _read_file(path: Path, findings: _Findings, command: Command) -> None:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        findings.problems.append(f"{path} cannot be read: {exc.strerror}")
        return
    except ValueError as exc:
        # tomllib's message has the place and no value, UnicodeDecodeError's has bytes
        reason = str(exc) if isinstance(exc, tomllib.TOMLDecodeError) else "not UTF-8"
        findings.problems.append(f"{path} is not TOML: {reason}")
        return
    holds_secret = False
    wanted = settings_of(command)
    for key, value in content.items():
        if key in SETTINGS:
            if key in wanted:
                findings.add(key, Given(value, f"{key} in {path}"))
            holds_secret = holds_secret or SETTINGS[key].kind.secret
        elif key in PLANNED:
            findings.problems.append(f"{key} in {path} is not supported yet; remove it")
        else:
            findings.problems.append(f"{key} in {path} is not a setting{suggestion(key, SETTINGS)}")
    if holds_secret and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        findings.warnings.append(f"{path} holds a secret and others can read it; run: chmod 600 {path}")


def _check(findings: _Findings, defaults: Mapping[str, Any]) -> Settings | None:
    """Each setting by itself. None when one of them is wrong; what is wrong is in the findings."""
    found = {name: given.value for name, given in findings.given.items()}

    class Bound(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            *_sources: PydanticBaseSettingsSource,
            **_named_sources: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return _Source(settings_cls, found), _Source(settings_cls, defaults)

    try:
        return Bound()  # type: ignore[call-arg]  # data_dir comes from the last source
    except ValidationError as exc:
        wrong = [(str(error["loc"][0]), error.get("ctx", {}).get("error")) for error in exc.errors(include_input=False)]
    for name, error in wrong:
        given, kind = findings.given[name], SETTINGS[name].kind
        quoted = f"; it is {given.value!r}" if not kind.secret and _may_be_quoted(given.value) else ""
        findings.problems.append(f"{given.origin} must be {error or kind.allowed}{quoted}")
    return None


def _may_be_quoted(value: object) -> bool:
    """A URL with a user in it is wrong almost everywhere, and often has a password too."""
    return isinstance(value, (int, float)) or (isinstance(value, str) and "@" not in value)


def _check_together(findings: _Findings, settings: Settings | None) -> None:
    """What only two settings together make wrong. Looks at what was given, so that one wrong value hides nothing."""
    given, problems = findings.given, findings.problems
    for one, other in (
        ("tls_cert_file", "tls_key_file"),
        ("tls_key_file", "tls_cert_file"),
        ("control_cert_file", "control_key_file"),
        ("control_key_file", "control_cert_file"),
        ("client_ca_file", "tls_cert_file"),
    ):
        if one in given and other not in given:
            problems.append(f"{given[one].origin} needs {other} beside it ({flag(other)} or {variable(other)})")
    if "database_listen_url" in given and "database_url" not in given:
        problems.append(
            f"{given['database_listen_url'].origin} needs {variable('database_url')} beside it: "
            "the embedded database has no pooler in front"
        )
    if "database_url" in given and "encryption_keys" not in given:
        problems.append(
            f"{given['database_url'].origin} needs {variable('encryption_keys')} beside it: "
            f"{SETTINGS['encryption_keys'].kind.allowed}. Keep it safe: without it the provider keys are lost"
        )
    if settings is None:
        return
    if settings.body_max_bytes > settings.body_memory_max:
        names = [name for name in ("body_max_bytes", "body_memory_max") if name in given]
        problems.append(
            f"{' and '.join(given[name].origin for name in names)} must leave room for one body: "
            f"body_max_bytes is {values.show_size(settings.body_max_bytes)}, "
            f"body_memory_max {values.show_size(settings.body_memory_max)}"
        )
    taken: dict[str, str] = {}
    for name in ("actor_header_id", "actor_header_username", "actor_header_email"):
        header = getattr(settings, name).lower()
        if header and header in taken:
            problems.append(
                f"{taken[header]} and {name} must be different headers; both are {getattr(settings, name)!r}"
            )
        taken.setdefault(header, name)
    for cert, key in (("tls_cert_file", "tls_key_file"), ("control_cert_file", "control_key_file")):
        cert_file, key_file = getattr(settings, cert), getattr(settings, key)
        if cert_file is None or key_file is None:
            continue
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                cert_file, key_file, password=_no_passphrase
            )
        except (ssl.SSLError, ValueError, OSError) as exc:
            problems.append(
                f"{given[cert].origin} and {given[key].origin} must be a PEM certificate and "
                f"its unencrypted private key: {_certificate_problem(exc)}"
            )
    for name in ("ca_file", "client_ca_file", "control_ca_file"):
        ca_file = getattr(settings, name)
        if ca_file is None:
            continue
        try:
            ssl.create_default_context(cafile=ca_file)
        except (ssl.SSLError, OSError):
            problems.append(f"{given[name].origin} must be a file of PEM certificates; it is {str(ca_file)!r}")


def _check_gateway(findings: _Findings, settings: Settings | None) -> Settings | None:
    """What a gateway cannot do without; its key, wherever it was given."""
    given, problems = findings.given, findings.problems
    if "control_url" not in given:
        problems.append(
            f"{flag('control_url')} ({variable('control_url')}) is needed: {SETTINGS['control_url'].kind.allowed}"
        )
    key, key_file = given.get("gateway_key"), given.get("gateway_key_file")
    if key and key_file:
        problems.append(f"{key.origin} and {key_file.origin} are two places for one key; keep one of them")
    elif not key and not key_file:
        problems.append(
            f"{flag('gateway_key_file')} ({variable('gateway_key_file')}) or {variable('gateway_key')} is needed: "
            f"{SETTINGS['gateway_key'].kind.allowed}"
        )
    elif key_file and settings is not None and settings.gateway_key_file is not None:
        try:
            # past the file's end there is nothing to read: a key has 256 characters at most
            with settings.gateway_key_file.open(encoding="ascii") as file:
                found = SETTINGS["gateway_key"].kind.parse(file.read(4096))
        except (OSError, ValueError):
            problems.append(f"{key_file.origin} must be a file with {SETTINGS['gateway_key'].kind.allowed}")
        else:
            return settings.model_copy(update={"gateway_key": found})
    return settings


def _check_providers(variables: Mapping[str, Secret], findings: _Findings) -> tuple[str, ...]:
    try:
        return read_provider_environment(variables).warnings
    except ProviderEnvError as exc:
        findings.problems.append(str(exc))
        return ()


def _certificate_problem(exc: ssl.SSLError | ValueError | OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        return exc.reason.lower().replace("_", " ") if exc.reason else "the one or the other is not in its file"
    return exc.strerror or "unreadable" if isinstance(exc, OSError) else "the key needs a passphrase"


def _no_passphrase() -> str:
    raise ValueError("encrypted")
