"""docs/configuration.md, made from the table of settings: `python -m ostiary.config.document > docs/configuration.md`."""

import sys
from itertools import groupby

from .loading import PLANNED
from .settings import MIGRATION_PREFIXES, SETTINGS, default_text, flag, variable

_INTRODUCTION = """\
# Configuration

<!-- Made by `python -m ostiary.config.document`; a test checks that it is current. -->

A setting is a flag of `ostiary server` or `ostiary gateway start`, an environment variable or a key in `ostiary.toml`.
They go before each other in this order, and what none of them gives has its default:

    ostiary server --drain-timeout 10m          # flag
    OSTIARY_DRAIN_TIMEOUT=10m ostiary server    # environment
    drain_timeout = "10m"                       # ostiary.toml

- The file is the one of `--config` or `OSTIARY_CONFIG`, else `./ostiary.toml`, else `/etc/ostiary/ostiary.toml`.
- Durations have a unit: `250ms`, `5s`, `10m`, `1h30m`, `60d`. Sizes: `32MiB`, `1GB`, or plain bytes. Lists: commas.
- Addresses are `HOST:PORT`; `[::1]:4000` for IPv6, `:4000` for all addresses, port `0` for any free one.
- A flag of a setting that is true or false takes no value: `--demo` is true, `--no-allow-byok` is false.
- An empty variable counts as not set.
- All wrong settings are reported together, each with what is allowed. An unknown flag or file key stops the start, an
  unknown variable beginning with `OSTIARY_` is a warning.
- `ostiary config show` prints what is in force and where it comes from, secrets masked; `ostiary config check` tells
  whether the server could start with it. `--gateway` makes it those of `ostiary gateway start`.
- Both commands may share one environment or file: each leaves alone what only the other has.
- Settings without a flag are secrets: arguments can be read by everybody on the machine.
"""

_PROVIDERS = """\
## Providers from the environment

Providers that the environment describes are written into the database at the start, once: a row that is there is never
changed, one that was removed stays removed. `ostiary providers plan` prints what a start would do. From then on
`ostiary providers` and the API change them. When the environment and a row differ in type, base URL or Bedrock region,
the start stops and shows the difference (`on_drift`).

One provider each of OpenAI and Anthropic, named `openai` and `anthropic`:

| variable | default |
|---|---|
| `OSTIARY_OPENAI_KEY` | |
| `OSTIARY_OPENAI_BASE_URL` | `https://api.openai.com/v1/` |
| `OSTIARY_ANTHROPIC_KEY` | |
| `OSTIARY_ANTHROPIC_BASE_URL` | `https://api.anthropic.com/` |

Any number of them, with `<N>` counting from 0 without gaps:

| variable | meaning |
|---|---|
| `OSTIARY_PROVIDER_<N>_TYPE` | `openai`, `anthropic`, `bedrock`, `copilot`, `azure`, `google`, `vercel`, `openrouter` or `openai-compat`; required |
| `OSTIARY_PROVIDER_<N>_NAME` | lowercase letters, digits and hyphens; the type when left out. It is the part of the URL that picks the provider |
| `OSTIARY_PROVIDER_<N>_BASE_URL` | where it is; required for types without an address of their own |
| `OSTIARY_PROVIDER_<N>_KEY`, `..._KEYS` | one key, or several with commas between them, in the order of failover |
| `OSTIARY_PROVIDER_<N>_BEDROCK_REGION`, `..._BEDROCK_BASE_URL`, `..._BEDROCK_ACCESS_KEY`, `..._BEDROCK_ACCESS_KEY_SECRET`, `..._BEDROCK_MODEL`, `..._BEDROCK_SMALL_FAST_MODEL` | for the types `bedrock` and `anthropic` |

A mistake in them (an unknown name, a gap in the numbers, one provider in two places) stops the start with a line that
names the variable.
"""  # noqa: E501  a table's row is one line

_CLIENT = """\
## Commands that talk to a server

| variable | meaning | default |
|---|---|---|
| `OSTIARY_URL` | the server's address | that of `ostiary login`, else `http://127.0.0.1:4000` |
| `OSTIARY_TOKEN` | your token | that of `ostiary login` for this server, else for a server on this machine `<data-dir>/owner-token` |
| `SSL_CERT_FILE` | CA certificates (PEM) by which the server is trusted | the system's |
"""  # noqa: E501  as above


def page() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *_sections(), _PROVIDERS, _CLIENT, _migration()])


def _sections() -> list[str]:
    parts = []
    for section, names in groupby(SETTINGS, key=lambda name: SETTINGS[name].section):
        rows = "\n".join(_row(name) for name in names)
        parts.append(f"## {section}\n\n| setting | default | meaning |\n|---|---|---|\n{rows}\n")
    return parts


def _row(name: str) -> str:
    setting = SETTINGS[name]
    names = [f"`{name}`", f"`{variable(name)}`", *(f"`{other}`" for other in setting.also)]
    if setting.flag:
        names.insert(1, f"`{flag(name)}`")
    command = {"server": " Of `ostiary server`.", "gateway": " Of `ostiary gateway start`.", None: ""}[setting.only]
    allowed = "" if setting.kind.allowed == "text" else f" Allowed: {setting.kind.allowed}."
    return f"| {'<br>'.join(names)} | {_cell(default_text(name))} | {_cell(setting.help + allowed + command)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _migration() -> str:
    rows = []
    for name, setting in SETTINGS.items():
        for suffix, words in setting.migration:
            meaning = ", ".join(f"`{theirs}` is `{ours}`" for theirs, ours in (words or {}).items())
            theirs = "<br>".join(f"`{prefix}{suffix}`" for prefix in MIGRATION_PREFIXES)
            if setting.only == "gateway" or setting.migration_only == "gateway":
                meaning = "of `ostiary gateway start`"
            rows.append(f"| {theirs} | `{variable(name)}` | {meaning} |")
    planned = ", ".join(f"`{name}`" for name in sorted(PLANNED))
    prefixes = " and ".join(f"`{prefix}`" for prefix in MIGRATION_PREFIXES)
    return (
        "## Coming from Coder's AI Gateway\n\n"
        f"The provider variables above are read under the prefixes {prefixes} too, and so are:\n\n"
        "| variable | is | |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
        "Two names of one setting with different values are an error.\n\n"
        "## Not supported yet\n\n"
        f"These names are known and have no effect; as a variable they are warned about, in a file they are an error: "
        f"{planned}.\n"
    )


if __name__ == "__main__":
    sys.stdout.write(page())
