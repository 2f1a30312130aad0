"""The RPC services as one ASGI application behind one gate."""

from typing import Any, Final, cast

from starlette.types import ASGIApp, Receive, Scope, Send

from ostiary.control.ingest import Ingest
from ostiary.control.state import ControlPlane
from ostiary.rpc.ostiary_connect import (
    AuthorizerASGIApplication,
    FleetASGIApplication,
    ProviderConfiguratorASGIApplication,
    RecorderASGIApplication,
)

from .authorizer import AuthorizerService
from .fleet import FleetService
from .gate import Gate
from .providers import ProviderConfiguratorService
from .recorder import RecorderService

RPC_PATHS: Final = (
    "/ostiary.v1.Recorder",
    "/ostiary.v1.Authorizer",
    "/ostiary.v1.ProviderConfigurator",
    "/ostiary.v1.Fleet",
)

MAX_BATCH_BYTES: Final = 96 * 1024**2
"""One record holds at most a request's prompt and an answer's facts; links cut their batches far below."""
_MAX_QUESTION_BYTES: Final = 64 * 1024
_MAX_STATUS_BYTES: Final = 1024**2


def rpc_application(control: ControlPlane) -> ASGIApp:
    """Mount it under each of `RPC_PATHS`."""
    settings = control.settings
    ingest = Ingest(control.rpc_engine, structured_logging=settings.structured_logging, retention=settings.retention)
    services: list[Any] = [  # Any: the generated classes are ASGI applications by asgiref's types
        RecorderASGIApplication(RecorderService(ingest, control.metrics), read_max_bytes=MAX_BATCH_BYTES),
        AuthorizerASGIApplication(
            AuthorizerService(control.rpc_engine, control.events), read_max_bytes=_MAX_QUESTION_BYTES
        ),
        ProviderConfiguratorASGIApplication(
            ProviderConfiguratorService(control.rpc_engine, control.vault, control.events),
            read_max_bytes=_MAX_QUESTION_BYTES,
        ),
        FleetASGIApplication(
            FleetService(control.rpc_engine, control.metrics_families), read_max_bytes=_MAX_STATUS_BYTES
        ),
    ]
    by_path = {cast("str", service.path): cast("ASGIApp", service) for service in services}
    assert tuple(by_path) == RPC_PATHS

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        await by_path["/" + scope["path"].split("/", 2)[1]](scope, receive, send)

    return Gate(dispatch, control.settings.gateway_key, control.gateway_calls)
