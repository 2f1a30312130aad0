"""What each process gets, made from the settings. What only a start knows is left to the supervisor (`runtime.plan`)."""

from pathlib import Path

import msgspec

from ostiary.core.secret import Secret
from ostiary.core.settings import (
    ControlSettings,
    FakeSettings,
    GatewaySettings,
    LinkSettings,
    LogSettings,
    TLSFiles,
)
from ostiary.runtime.plan import FakePlan, ServerPlan

from .loading import Loaded
from .settings import Settings


def server_plan(loaded: Loaded) -> ServerPlan:
    """The plan of `ostiary server`."""
    settings = loaded.settings
    log = log_settings(settings)
    return ServerPlan(
        data_dir=str(settings.data_dir),
        listen=settings.listen,
        workers=settings.workers,
        metrics_listen=settings.metrics_listen,
        gateway=gateway_settings(settings),
        link=link_settings(settings),
        control=control_settings(loaded),
        fake=FakePlan(settings.fake_listen, FakeSettings(log)) if settings.demo else None,
        hang_timeout=settings.hang_timeout,
        log=log,
    )


def gateway_plan(loaded: Loaded) -> ServerPlan:
    """The plan of `ostiary gateway start`."""
    settings = loaded.settings
    replace = msgspec.structs.replace
    return ServerPlan(
        data_dir=str(settings.data_dir),
        listen=settings.listen,
        workers=settings.workers,
        metrics_listen=settings.metrics_listen,
        gateway=replace(gateway_settings(settings), mode="standalone"),
        link=replace(
            link_settings(settings),
            mode="standalone",
            control_url=settings.control_url,
            gateway_key=settings.gateway_key,
            cache_dir=str(settings.data_dir / "link"),
            control_ca_file=str(settings.control_ca_file or ""),
            control_tls=_tls_files(settings.control_cert_file, settings.control_key_file),
        ),
        hang_timeout=settings.hang_timeout,
        log=log_settings(settings),
    )


def log_settings(settings: Settings) -> LogSettings:
    return LogSettings(format=settings.log_format, level=settings.log_level)


def gateway_settings(settings: Settings) -> GatewaySettings:
    """A worker's. The control plane's address and the front-door secret are the supervisor's."""
    return GatewaySettings(
        journal_dir=_journal_dir(settings),
        tls=_tls_files(settings.tls_cert_file, settings.tls_key_file),
        client_ca_file=str(settings.client_ca_file or ""),
        log=log_settings(settings),
        journal_sync=settings.journal_sync,
        journal_full=settings.journal_full,
        journal_max_bytes=settings.journal_max_bytes,
        record_content=settings.record_content,
        allow_byok=settings.allow_byok,
        body_memory_max=settings.body_memory_max,
        auth_grace=settings.auth_grace,
        connect_timeout=settings.connect_timeout,
        head_timeout=settings.head_timeout,
        idle_timeout=settings.idle_timeout,
        client_head_timeout=settings.client_head_timeout,
        client_keepalive_timeout=settings.client_keepalive_timeout,
        client_body_timeout=settings.client_body_timeout,
        drain_timeout=settings.drain_timeout,
        max_retries=settings.max_retries,
        ca_file=str(settings.ca_file or ""),
        https_proxy=settings.https_proxy,
        no_proxy=settings.no_proxy,
        egress_allow=settings.egress_allow,
        keepalive_pool=settings.keepalive_pool,
        dump_dir=settings.dump_dir,
        body_max_bytes=settings.body_max_bytes,
        head_max_bytes=settings.head_max_bytes,
        max_concurrency=settings.max_concurrency,
        rate_limit=settings.rate_limit,
        sse_keepalive=settings.sse_keepalive,
        retry_5xx=settings.retry_5xx,
        circuit_breaker_enabled=settings.circuit_breaker_enabled,
        circuit_breaker_failure_threshold=settings.circuit_breaker_failure_threshold,
        circuit_breaker_interval=settings.circuit_breaker_interval,
        circuit_breaker_timeout=settings.circuit_breaker_timeout,
        circuit_breaker_max_requests=settings.circuit_breaker_max_requests,
        send_actor_headers=settings.send_actor_headers,
        actor_header_id=settings.actor_header_id,
        actor_header_username=settings.actor_header_username,
        actor_header_email=settings.actor_header_email,
        dump_file_max_bytes=settings.dump_file_max_bytes,
        dump_max_bytes=settings.dump_max_bytes,
        otel_endpoint=settings.otel_endpoint,
        otel_conventions=settings.otel_conventions,
        otel_content=settings.otel_content,
        otel_user=settings.otel_user,
    )


def link_settings(settings: Settings) -> LinkSettings:
    """The link's. The control plane's address and the gateway key are the supervisor's, but for a gateway."""
    return LinkSettings(
        control_url="",
        gateway_key=Secret(""),
        journal_dir=_journal_dir(settings),
        data_dir=str(settings.data_dir),
        log=log_settings(settings),
        auth_grace=settings.auth_grace,
        structured_logging=settings.structured_logging and settings.structured_logging_source != "control",
    )


def control_settings(loaded: Loaded) -> ControlSettings:
    """The control plane's. The embedded database's URL, the secrets of a start and the demo are the supervisor's."""
    settings = loaded.settings
    return ControlSettings(
        database_url=settings.database_url,
        database_listen_url=settings.database_listen_url,
        data_dir=str(settings.data_dir),
        gateway_key=Secret(""),
        front_door_secret=Secret(""),
        public_url="",
        embedded_database=not settings.database_url,
        encryption_keys=settings.encryption_keys,
        bootstrap_token=settings.bootstrap_token,
        seed_environment=dict(loaded.provider_environment),
        on_drift=settings.on_drift,
        allow_byok=settings.allow_byok,
        log=log_settings(settings),
        structured_logging=settings.structured_logging and settings.structured_logging_source != "gateway",
        retention=settings.retention,
        ca_file=str(settings.ca_file or ""),
        https_proxy=settings.https_proxy,
        no_proxy=settings.no_proxy,
        egress_allow=settings.egress_allow,
    )


def _tls_files(cert_file: Path | None, key_file: Path | None) -> TLSFiles | None:
    return TLSFiles(str(cert_file), str(key_file)) if cert_file is not None and key_file is not None else None


def _journal_dir(settings: Settings) -> str:
    return str(settings.data_dir / "journal")
