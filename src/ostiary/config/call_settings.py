"""Settings of calls: what is kept, allowed, waited for and told of them. Half of the table in `settings`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel

from ostiary.core.secret import Secret

from . import values
from .setting import Setting

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


class CallSettings(BaseModel):
    """Of the calls that go through."""

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
        float,
        Setting(
            _CLIENTS,
            values.duration("1s", "1h"),
            "Silence while a request body is read; then 408. After a minute, or this time where it is longer, a body must "
            "also have come at 1 KiB a second on average.",
        ),
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
        Setting(
            _LIMITS,
            values.size("32MiB", "1024GiB"),
            "Request bodies a worker holds at once; beyond it: 503. As much again is for answers that are not streams and "
            "are read for their record; beyond it they reach their clients all the same, and are recorded as unparsed.",
        ),
    ] = 512 * 1024**2

    connect_timeout: Annotated[
        float, Setting(_UPSTREAM, values.duration("100ms", "10m"), "Until a connection to a provider stands.")
    ] = 10.0
    head_timeout: Annotated[
        float, Setting(_UPSTREAM, values.duration("1s", "1d"), "Until a provider's response head is there.")
    ] = 600.0
    idle_timeout: Annotated[
        float,
        Setting(
            _UPSTREAM,
            values.duration("1s", "1d"),
            "Silence of a provider within a response. So long a client may also take for the next half MiB of what waits "
            "for it, 1.7 KiB/s by default; one that reads more slowly, or not at all, is disconnected, and its call is "
            "recorded as `client_closed`.",
        ),
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
