"""Every setting of `ostiary server` and `ostiary gateway start`, once: name, kind, default, what it does.

The flag, the environment variable and the key in `ostiary.toml` follow from a field's name: `drain_timeout` is
`--drain-timeout`, `OSTIARY_DRAIN_TIMEOUT` and `drain_timeout = "5m"`. Help texts, error messages, `ostiary config show`
and docs/configuration.md are made from this table. A setting that has no effect yet does not stand here.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from pydantic_settings import BaseSettings, SettingsConfigDict

from ostiary.core.secret import Secret
from ostiary.runtime.plan import Address

from . import values
from .values import Kind

PREFIX = "OSTIARY_"
MIGRATION_PREFIXES = ("CODER_AI_GATEWAY_", "CODER_AIBRIDGE_")
"""Read for those who come from there (reference H); ours wins nothing over them: setting both differently is an error."""


Command = Literal["server", "gateway"]
"""`ostiary server` or `ostiary gateway start`."""

GATEWAY_LISTEN: Final = Address("127.0.0.1", 4001)


@dataclass(frozen=True)
class Setting:
    """What is known of a setting beside its type and default."""

    section: str
    kind: Kind
    help: str
    flag: bool = True
    """False for secrets: an argument list is readable by everybody on the machine."""
    migration: tuple[tuple[str, Mapping[str, str] | None], ...] = ()
    """Names behind `MIGRATION_PREFIXES`, each with what its words mean here when they differ."""
    also: tuple[str, ...] = ()
    """Other variables it is read from when ours is not set, full names."""
    default_text: str = ""
    """For the documentation, when the default depends on the machine."""
    only: Command | None = None
    """The command that has it; None: both."""
    flag_name: str = ""
    """Its flag, when that does not follow from the field's name."""
    migration_only: Command | None = None
    """The command that reads the names of `migration`; None: whichever has the setting."""

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.kind.parse)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """One worker a core, at most four: more is a decision about the machine."""
    return max(1, min(4, _cores()))


def default_data_dir(environ: Mapping[str, str], command: Command = "server") -> Path:
    """`/var/lib/ostiary` for root, else below the user's data home. A gateway has its own: a directory serves one."""
    name = "ostiary" if command == "server" else "ostiary-gateway"
    if os.geteuid() == 0:
        return Path("/var/lib") / name
    home = environ.get("XDG_DATA_HOME", "")
    base = Path(home) if home.startswith("/") else Path("~/.local/share").expanduser()
    return base / name


_ADDRESSES = "Addresses"
_CONTROL = "Control plane of a gateway"
_PROCESS = "Processes"
_DATABASE = "Database and secrets"
_PROVIDERS = "Providers"
_RECORD = "Recording"
_CLIENTS = "Clients"
_LIMITS = "Limits"
_UPSTREAM = "Upstreams"
_BREAKER = "Circuit breaker"
_ACTOR = "Actor headers"
_DUMPS = "Dumps"
_LOG = "Logging"
_OTEL = "OpenTelemetry"

_DISABLE_CONTENT = {"true": "none", "false": "prompts"}
_LOGGING_SOURCES = {"coderd": "control", "gateway": "gateway", "both": "both"}


class Settings(BaseSettings):
    """The settings of a command that serves, parsed and checked one by one. Made by `ostiary.config.load`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=False, hide_input_in_errors=True)

    listen: Annotated[
        Address,
        Setting(
            _ADDRESSES,
            values.listen(),
            "Where the gateway, the API and everything else is served.",
            migration=(("HTTP_ADDRESS", None),),
            migration_only="gateway",
            default_text=f"`127.0.0.1:4000`; of `ostiary gateway start` `{GATEWAY_LISTEN}`",
        ),
    ] = Address("127.0.0.1", 4000)
    metrics_listen: Annotated[
        Address | None,
        Setting(_ADDRESSES, values.listen(optional=True), "Where Prometheus finds `/metrics`; `off` for nowhere."),
    ] = Address("127.0.0.1", 2112)
    tls_cert_file: Annotated[
        Path | None,
        Setting(
            _ADDRESSES,
            values.readable_file(),
            "Certificate chain (PEM): with the key, `listen` speaks TLS.",
            migration=(("TLS_CERT_FILE", None),),
            migration_only="gateway",
        ),
    ] = None
    tls_key_file: Annotated[
        Path | None,
        Setting(
            _ADDRESSES,
            values.readable_file(),
            "Private key (PEM) of the certificate.",
            migration=(("TLS_KEY_FILE", None),),
            migration_only="gateway",
        ),
    ] = None
    client_ca_file: Annotated[
        Path | None,
        Setting(
            _ADDRESSES,
            values.readable_file(),
            "CA certificates (PEM): gateways must show a client certificate of one of them. "
            "Everybody else is asked for one and needs none.",
            only="server",
        ),
    ] = None

    control_url: Annotated[
        str,
        Setting(
            _CONTROL,
            values.server_url(),
            "The server that this gateway belongs to.",
            also=("CODER_URL",),
            only="gateway",
            flag_name="--url",
            default_text="none, required",
        ),
    ] = ""
    gateway_key: Annotated[
        Secret,
        Setting(
            _CONTROL,
            values.gateway_key(),
            "The key made by `ostiary gateway keys create`. A file or the variable keeps it out of argument lists.",
            migration=(("KEY", None),),
            only="gateway",
            flag_name="--key",
            default_text="none; this or `gateway_key_file` is required",
        ),
    ] = Secret("")
    gateway_key_file: Annotated[
        Path | None,
        Setting(
            _CONTROL,
            values.readable_file(),
            "A file with that key alone in it.",
            migration=(("KEY_FILE", None),),
            only="gateway",
            flag_name="--key-file",
        ),
    ] = None
    control_ca_file: Annotated[
        Path | None,
        Setting(
            _CONTROL,
            values.readable_file(),
            "CA certificates (PEM) by which the server is trusted, beside the system's.",
            only="gateway",
        ),
    ] = None
    control_cert_file: Annotated[
        Path | None,
        Setting(
            _CONTROL,
            values.readable_file(),
            "Client certificate (PEM) to show to the server.",
            only="gateway",
        ),
    ] = None
    control_key_file: Annotated[
        Path | None,
        Setting(_CONTROL, values.readable_file(), "Private key (PEM) of the client certificate.", only="gateway"),
    ] = None

    data_dir: Annotated[
        Path,
        Setting(
            _PROCESS,
            values.directory(),
            "Journal, embedded database, vault key and owner token live here; a gateway keeps its journal and what it "
            "last knew.",
            default_text="`/var/lib/ostiary` for root, else `$XDG_DATA_HOME/ostiary` or `~/.local/share/ostiary`; "
            "of `ostiary gateway start` `ostiary-gateway` in the same place",
        ),
    ]
    workers: Annotated[
        int,
        Setting(
            _PROCESS,
            values.integer(1, 256),
            "Gateway processes that share the listening address.",
            default_text="one a core, at most 4",
        ),
    ] = Field(default_factory=default_workers)
    drain_timeout: Annotated[
        float,
        Setting(
            _PROCESS,
            values.duration("0s", "1d"),
            "How long a stop waits for streams in flight before it cuts them.",
        ),
    ] = 300.0
    demo: Annotated[
        bool,
        Setting(
            _PROCESS,
            values.boolean(),
            "Also start a fake provider and register it as `demo-openai` and `demo-anthropic`.",
            only="server",
        ),
    ] = False
    fake_listen: Annotated[
        Address, Setting(_PROCESS, values.listen(), "Where the fake provider of `demo` listens.", only="server")
    ] = Address("127.0.0.1", 4010)

    database_url: Annotated[
        Secret,
        Setting(
            _DATABASE,
            values.database_url(),
            "PostgreSQL 14 or newer. Without it the server runs one of its own in the data directory.",
            default_text="embedded",
            only="server",
        ),
    ] = Secret("")
    database_listen_url: Annotated[
        Secret,
        Setting(
            _DATABASE,
            values.database_url(),
            "The same database without a connection pooler in between, to be told of changes (`LISTEN`): "
            "a pooler in transaction mode passes none on.",
            default_text="`database_url`",
            only="server",
        ),
    ] = Secret("")
    encryption_keys: Annotated[
        tuple[Secret, ...],
        Setting(
            _DATABASE,
            values.vault_keys(),
            "Keys that encrypt provider keys at rest: 32 bytes each in base64, the current one first. "
            "Required with `database_url`.",
            flag=False,
            default_text="a key file made on first start, with the embedded database",
            only="server",
        ),
    ] = ()
    bootstrap_token: Annotated[
        Secret,
        Setting(
            _DATABASE,
            values.bootstrap_token(),
            "Token of the owner `admin`, 32 characters or more, valid from each start on in place of the one before.",
            flag=False,
            default_text="made on first start, written to `<data-dir>/owner-token`",
            only="server",
        ),
    ] = Secret("")

    on_drift: Annotated[
        Literal["fail", "warn"],
        Setting(
            _PROVIDERS,
            values.choice("fail", "warn"),
            "What to do when a provider of the environment differs from its row in the database.",
            only="server",
        ),
    ] = "fail"
    allow_byok: Annotated[
        bool,
        Setting(
            _PROVIDERS,
            values.boolean(),
            "Whether people may bring their own provider credential.",
            migration=(("ALLOW_BYOK", None),),
        ),
    ] = True

    record_content: Annotated[
        Literal["none", "prompts", "full"],
        Setting(
            _RECORD,
            values.choice("none", "prompts", "full"),
            "What is kept of a call: `none` usage only, `prompts` also the last user prompt, tool calls and thoughts, "
            "`full` also answers and tool results.",
            migration=(("DISABLE_CONTENT_RECORDING", _DISABLE_CONTENT),),
        ),
    ] = "prompts"
    journal_sync: Annotated[
        Literal["interval", "always"],
        Setting(
            _RECORD,
            values.choice("interval", "always"),
            "When the journal reaches the disk: every 50 ms, or before each request goes upstream "
            "(safe against power loss).",
        ),
    ] = "interval"
    journal_full: Annotated[
        Literal["refuse", "shed-content"],
        Setting(
            _RECORD,
            values.choice("refuse", "shed-content"),
            "What happens at `journal_max_bytes`: requests are refused, or their content is dropped and usage kept.",
        ),
    ] = "refuse"
    journal_max_bytes: Annotated[
        int,
        Setting(_RECORD, values.size("1MiB", "1024GiB"), "Disk space a worker's journal may take."),
    ] = 4 * 1024**3
    retention: Annotated[
        float,
        Setting(
            _RECORD,
            values.duration_or_zero("1d", "3650d"),
            "How long records are kept in the database; whole weeks go, each once all of it is older "
            "([retention.md](retention.md)). `0`: for ever.",
            only="server",
            migration=(("RETENTION", None),),
        ),
    ] = 60 * 86400.0
    structured_logging: Annotated[
        bool,
        Setting(
            _RECORD,
            values.boolean(),
            "Write one `interception log` line a record, of level info (docs/observability.md).",
            migration=(("STRUCTURED_LOGGING", None),),
        ),
    ] = False
    structured_logging_source: Annotated[
        Literal["control", "gateway", "both"],
        Setting(
            _RECORD,
            values.choice("control", "gateway", "both"),
            "Who writes those lines: `control` the server when it has stored a record, `gateway` the machine that made "
            "it, or both.",
            migration=(("STRUCTURED_LOGGING_SOURCE", _LOGGING_SOURCES),),
        ),
    ] = "control"

    client_head_timeout: Annotated[
        float, Setting(_CLIENTS, values.duration("1s", "10m"), "Until a client's request head is complete.")
    ] = 10.0
    client_body_timeout: Annotated[
        float, Setting(_CLIENTS, values.duration("1s", "1h"), "Silence while a request body is read.")
    ] = 30.0
    client_keepalive_timeout: Annotated[
        float,
        Setting(
            _CLIENTS,
            values.duration("1s", "1h"),
            "How long an idle client connection stays open; keep it above that of a load balancer in front.",
        ),
    ] = 75.0
    sse_keepalive: Annotated[
        float,
        Setting(
            _CLIENTS,
            values.duration("0s", "5m"),
            "Silence of a provider after which the client of an Anthropic stream gets a `ping`, e.g. `10s`; `0s`: never.",
        ),
    ] = 0.0
    auth_grace: Annotated[
        float,
        Setting(
            _CLIENTS,
            values.duration("0s", "7d"),
            "How long known tokens are served while the control plane is away.",
        ),
    ] = 3600.0

    max_concurrency: Annotated[
        int,
        Setting(
            _LIMITS,
            values.integer(0, 1_000_000),
            "Requests to providers under way at once on this machine, over all its workers; more get 503 at once. "
            "0: no limit.",
            migration=(("MAX_CONCURRENCY", None),),
        ),
    ] = 0
    rate_limit: Annotated[
        int,
        Setting(
            _LIMITS,
            values.integer(0, 1_000_000),
            "Requests to providers that one token may make in a second on this machine; more get 429. 0: no limit.",
            migration=(("RATE_LIMIT", None),),
        ),
    ] = 0
    head_max_bytes: Annotated[
        int, Setting(_LIMITS, values.size("4KiB", "256KiB"), "A client's request head; a larger one gets 431.")
    ] = 64 * 1024
    body_max_bytes: Annotated[
        int,
        Setting(
            _LIMITS,
            values.size("1KiB", "1GiB"),
            "A request body; a larger one gets 413. Uploads of files are streamed, and have no limit here.",
        ),
    ] = 32 * 1024**2
    body_memory_max: Annotated[
        int,
        Setting(_LIMITS, values.size("32MiB", "1024GiB"), "Request bodies a worker holds at once; beyond it: 503."),
    ] = 512 * 1024**2

    connect_timeout: Annotated[
        float, Setting(_UPSTREAM, values.duration("100ms", "10m"), "Until a connection to a provider stands.")
    ] = 10.0
    head_timeout: Annotated[
        float, Setting(_UPSTREAM, values.duration("1s", "1d"), "Until a provider's response head is there.")
    ] = 600.0
    idle_timeout: Annotated[
        float, Setting(_UPSTREAM, values.duration("1s", "1d"), "Silence of a provider within a response.")
    ] = 300.0
    max_retries: Annotated[
        int, Setting(_UPSTREAM, values.integer(0, 5), "New attempts after a connection that could not be made.")
    ] = 1
    retry_5xx: Annotated[
        int,
        Setting(
            _UPSTREAM,
            values.integer(0, 5),
            "New attempts after a 5xx of a provider. Clients try again themselves, and a call may be billed twice.",
        ),
    ] = 0
    keepalive_pool: Annotated[
        int, Setting(_UPSTREAM, values.integer(0, 65535), "Idle connections a worker keeps per provider address.")
    ] = 512
    ca_file: Annotated[
        Path | None,
        Setting(_UPSTREAM, values.readable_file(), "CA bundle (PEM) for providers, in place of the system's."),
    ] = None
    https_proxy: Annotated[
        Secret,
        Setting(
            _UPSTREAM,
            values.proxy_url(),
            "Proxy through which providers are reached over TLS.",
            flag=False,
            also=("HTTPS_PROXY", "https_proxy"),
        ),
    ] = Secret("")
    no_proxy: Annotated[
        str,
        Setting(
            _UPSTREAM,
            values.text(),
            "Hosts reached without the proxy, with commas between them.",
            also=("NO_PROXY", "no_proxy"),
        ),
    ] = ""
    egress_allow: Annotated[
        tuple[str, ...],
        Setting(
            _UPSTREAM,
            values.networks(),
            "Link-local or cloud-metadata addresses that providers may have; all of them are refused otherwise.",
        ),
    ] = ()

    circuit_breaker_enabled: Annotated[
        bool,
        Setting(
            _BREAKER,
            values.boolean(),
            "Whether a model of a provider that keeps failing gets a pause, in which its requests are answered with 503.",
            migration=(("CIRCUIT_BREAKER_ENABLED", None),),
        ),
    ] = True
    circuit_breaker_failure_threshold: Annotated[
        int,
        Setting(
            _BREAKER,
            values.integer(1, 1000),
            "Failures in a row that open it.",
            migration=(("CIRCUIT_BREAKER_FAILURE_THRESHOLD", None),),
        ),
    ] = 5
    circuit_breaker_interval: Annotated[
        float,
        Setting(
            _BREAKER,
            values.duration("1ms", "1d"),
            "The time within which these failures have to fall.",
            migration=(("CIRCUIT_BREAKER_INTERVAL", None),),
        ),
    ] = 10.0
    circuit_breaker_timeout: Annotated[
        float,
        Setting(
            _BREAKER,
            values.duration("1ms", "1d"),
            "How long it stays open before some requests are let through to try.",
            migration=(("CIRCUIT_BREAKER_TIMEOUT", None),),
        ),
    ] = 30.0
    circuit_breaker_max_requests: Annotated[
        int,
        Setting(
            _BREAKER,
            values.integer(1, 1000),
            "How many requests are let through then. All of them must succeed to close it.",
            migration=(("CIRCUIT_BREAKER_MAX_REQUESTS", None),),
        ),
    ] = 3

    send_actor_headers: Annotated[
        bool,
        Setting(
            _ACTOR,
            values.boolean(),
            "Whether providers are told, on bridged routes, who makes a call ([headers.md](headers.md)).",
            migration=(("SEND_ACTOR_HEADERS", None),),
        ),
    ] = False
    actor_header_id: Annotated[
        str,
        Setting(
            _ACTOR,
            values.header_name("X-AI-Bridge-Actor-ID"),
            "The header that holds the person's id.",
            migration=(("ACTOR_HEADER_ID", None),),
        ),
    ] = "X-AI-Bridge-Actor-ID"
    actor_header_username: Annotated[
        str,
        Setting(
            _ACTOR,
            values.header_name("X-AI-Bridge-Actor-Metadata-Username"),
            "The header that holds the username.",
            migration=(("ACTOR_HEADER_USERNAME", None),),
        ),
    ] = "X-AI-Bridge-Actor-Metadata-Username"
    actor_header_email: Annotated[
        str,
        Setting(
            _ACTOR,
            values.header_name("X-AI-Bridge-Actor-Metadata-Email"),
            "The header that holds the email address.",
            migration=(("ACTOR_HEADER_EMAIL", None),),
        ),
    ] = ""

    dump_dir: Annotated[
        str,
        Setting(
            _DUMPS,
            values.optional_directory(),
            "Every request to a provider and its answer are written below it, secrets masked ([dumps.md](dumps.md)).",
            migration=(("DUMP_DIR", None),),
        ),
    ] = ""
    dump_file_max_bytes: Annotated[
        int, Setting(_DUMPS, values.size("1KiB", "1GiB"), "What one file of a dump may hold; the rest is cut off.")
    ] = 16 * 1024**2
    dump_max_bytes: Annotated[
        int,
        Setting(
            _DUMPS, values.size("1MiB", "1024GiB"), "What the whole directory may hold; the oldest files go first."
        ),
    ] = 1024**3

    log_format: Annotated[
        Literal["console", "json"], Setting(_LOG, values.choice("console", "json"), "Lines for people or for machines.")
    ] = "console"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Setting(_LOG, values.choice("debug", "info", "warning", "error"), "The least severe lines written."),
    ] = "info"

    otel_endpoint: Annotated[
        str,
        Setting(
            _OTEL,
            values.collector_url(),
            "Send traces and metrics of calls to this collector (OTLP over HTTP); without it none are made. "
            "The other OTEL_* variables are OpenTelemetry's own (docs/observability.md).",
            also=("OTEL_EXPORTER_OTLP_ENDPOINT",),
        ),
    ] = ""
    otel_conventions: Annotated[
        Literal["v1.41", "latest"],
        Setting(
            _OTEL,
            values.conventions(),
            "Names of attributes and metrics: those of the GenAI semantic conventions v1.41, or the ones after them. "
            "The variable OTEL_SEMCONV_STABILITY_OPT_IN means `latest` when it holds `gen_ai_latest_experimental`.",
            also=("OTEL_SEMCONV_STABILITY_OPT_IN",),
        ),
    ] = "v1.41"
    otel_content: Annotated[
        bool,
        Setting(
            _OTEL,
            values.captured_content(),
            "Prompts and answers in spans too, as far as `record_content` keeps them.",
            also=("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",),
        ),
    ] = False
    otel_user: Annotated[
        bool, Setting(_OTEL, values.boolean(), "The id of the person who asked as an attribute `user.id` of spans.")
    ] = False


def _table() -> dict[str, Setting]:
    found = {}
    for name, field in Settings.model_fields.items():
        (setting,) = (item for item in field.metadata if isinstance(item, Setting))
        found[name] = setting
    return found


SETTINGS: Mapping[str, Setting] = _table()
"""By field name, in the order of the documentation."""


def settings_of(command: Command) -> dict[str, Setting]:
    """Those a command has."""
    return {name: setting for name, setting in SETTINGS.items() if setting.only in (None, command)}


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def flag(name: str) -> str:
    """The flag of a setting."""
    return SETTINGS[name].flag_name or "--" + name.replace("_", "-")


def default_text(name: str) -> str:
    """The default as documentation shows it."""
    setting = SETTINGS[name]
    if setting.default_text:
        return setting.default_text
    shown = setting.kind.show(Settings.model_fields[name].default)
    return f"`{shown}`" if shown else "none"
