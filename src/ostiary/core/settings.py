"""What each process is told at its start: checked already, data only.

`ostiary.config` makes these from flags, environment and file; the documentation of each setting stands there.
"""

from typing import Literal

from msgspec import Struct

from .secret import Secret


class TLSFiles(Struct, frozen=True):
    """PEM files of a listener; re-read when they change."""

    cert_file: str
    key_file: str


class LogSettings(Struct, frozen=True):
    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"


class GatewaySettings(Struct, frozen=True):
    """A gateway worker."""

    journal_dir: str
    """`<data-dir>/journal`; each start makes its own directory below."""
    mode: Literal["embedded", "standalone"] = "embedded"
    control_url: str = ""
    """Embedded: the control plane's loopback address that the front door relays to, http://127.0.0.1:PORT."""
    front_door_secret: Secret = Secret("")
    """Embedded: the per-start secret by which the control plane believes our X-Forwarded-* headers."""
    tls: TLSFiles | None = None
    client_ca_file: str = ""
    """With `tls`: client certificates of these CAs are asked for, and required on RPC paths."""
    log: LogSettings = LogSettings()
    journal_sync: Literal["interval", "always"] = "interval"
    journal_full: Literal["refuse", "shed-content"] = "refuse"
    journal_max_bytes: int = 4 * 1024**3
    journal_segment_bytes: int = 4 * 1024**2
    """Small: the pages of a deleted segment are soon written to again, while they are warm. What a system has not touched
    for long, above all in a virtual machine that gives free memory back to its host, costs several µs a page."""
    record_content: Literal["none", "prompts", "full"] = "prompts"
    allow_byok: bool = True
    body_max_bytes: int = 32 * 1024**2
    body_memory_max: int = 512 * 1024**2
    auth_grace: float = 3600.0
    """Seconds since the last answer of the control plane for which a known token is still served."""
    connect_timeout: float = 10.0
    head_timeout: float = 600.0
    """Until the upstream's response head."""
    idle_timeout: float = 300.0
    """Between two reads of a response's body."""
    client_head_timeout: float = 10.0
    client_keepalive_timeout: float = 75.0
    client_body_timeout: float = 30.0
    """Silence while a request body is read."""
    drain_timeout: float = 300.0
    max_retries: int = 1
    ca_file: str = ""
    """CA bundle for upstreams in place of the system's."""
    https_proxy: Secret = Secret("")
    """Its URL may hold a password."""
    no_proxy: str = ""
    egress_allow: tuple[str, ...] = ()
    """Addresses or networks that are refused by default (link-local, cloud metadata) and allowed here."""
    keepalive_pool: int = 512
    """Idle upstream connections kept per origin."""
    max_concurrency: int = 0
    """Requests under way on this machine; 0: no limit. So is `rate_limit`: requests a second and token."""
    rate_limit: int = 0
    head_max_bytes: int = 64 * 1024
    """Of a client's request head."""
    retry_5xx: int = 0
    circuit_breaker_enabled: bool = True
    circuit_breaker_failure_threshold: int = 5
    circuit_breaker_interval: float = 10.0
    circuit_breaker_timeout: float = 30.0
    circuit_breaker_max_requests: int = 3
    sse_keepalive: float = 0.0
    """Seconds of silence after which a stream's client gets a ping; 0: never."""
    send_actor_headers: bool = False
    actor_header_id: str = "X-AI-Bridge-Actor-ID"
    actor_header_username: str = "X-AI-Bridge-Actor-Metadata-Username"
    actor_header_email: str = ""
    """Empty: not sent. So are the other two."""
    dump_dir: str = ""
    """Empty: nothing is dumped."""
    dump_file_max_bytes: int = 16 * 1024**2
    dump_max_bytes: int = 1024**3
    """Of the whole directory."""
    otel_endpoint: str = ""
    """Base URL of an OTLP/HTTP collector. Empty: no telemetry is made."""
    otel_conventions: Literal["v1.41", "latest"] = "v1.41"
    otel_content: bool = False
    otel_user: bool = False


class LinkSettings(Struct, frozen=True):
    """The machine's connection to the control plane."""

    control_url: str
    gateway_key: Secret
    """Embedded: a per-start secret that only this machine's control plane takes."""
    journal_dir: str
    data_dir: str
    mode: Literal["embedded", "standalone"] = "embedded"
    log: LogSettings = LogSettings()
    poll_interval: float = 10.0
    """Seconds between two looks at the revision; changes are pushed besides."""
    structured_logging: bool = False
    """Log each record that is shipped."""
    auth_ttl: float = 60.0
    """How long an answer may be used while revocations are pushed."""
    auth_grace: float = 3600.0
    drain_timeout: float = 60.0
    """How long a graceful stop tries to ship what is left."""
    cache_dir: str = ""
    """Standalone: where what the control plane said last is kept, encrypted. Empty: nowhere."""
    control_ca_file: str = ""
    """CAs (PEM) that vouch for the control plane beside the system's."""
    control_tls: TLSFiles | None = None
    """The client certificate towards the control plane."""


class DemoProvider(Struct, frozen=True):
    """A provider that `--demo` seeds beside those of the environment."""

    name: str
    type: str
    base_url: str
    key: Secret


class ControlSettings(Struct, frozen=True):
    """The control plane."""

    database_url: Secret
    """SQLAlchemy URL with the asyncpg driver; of the embedded server a unix socket."""
    data_dir: str
    gateway_key: Secret
    """The embedded link's per-start key."""
    front_door_secret: Secret
    public_url: str
    embedded_database: bool = True
    database_listen_url: Secret = Secret("")
    """The same database past a connection pooler, for LISTEN. Empty: `database_url`."""
    encryption_keys: tuple[Secret, ...] = ()
    """Base64 of 32 bytes each, the first one encrypts. Empty only with the embedded database (key file)."""
    bootstrap_token: Secret = Secret("")
    seed_environment: dict[str, Secret] = {}
    """The provider variables of the environment, by full name, as found (reference C.6)."""
    demo_providers: tuple[DemoProvider, ...] = ()
    on_drift: Literal["fail", "warn"] = "fail"
    allow_byok: bool = True
    log: LogSettings = LogSettings()
    structured_logging: bool = False
    retention: float = 60 * 86400.0
    """Seconds that records are kept; 0: for ever."""
    ca_file: str = ""
    """As of the workers, and so the next three: for the calls by which keys are tried."""
    https_proxy: Secret = Secret("")
    no_proxy: str = ""
    egress_allow: tuple[str, ...] = ()


class FakeSettings(Struct, frozen=True):
    """The fake provider."""

    log: LogSettings = LogSettings()
    tls: TLSFiles | None = None
    ledger: Literal["counts", "marks", "full"] = "counts"
    """How much it notes of each request that reaches it; `ostiary.fake.ledger`."""
    ledger_file: str = ""
    """Append what is noted to this file."""
    drain_timeout: float = 10.0
