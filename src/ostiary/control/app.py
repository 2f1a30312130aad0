"""The control plane's ASGI application: REST and RPC on one port."""

from fastapi import FastAPI

from ostiary import __version__

from .api import (
    audit,
    diagnosis,
    docs,
    errors,
    gateway_keys,
    health,
    interceptions,
    journals,
    models_clients,
    provider_keys,
    providers,
    replicas,
    sessions,
    storage,
    tokens,
    traffic,
    users,
    vault,
)
from .api.edge import Edge
from .api.reading import ALIAS, PREFIX
from .services import RPC_PATHS, rpc_application
from .state import ControlPlane

_RECORD_ROUTERS = (
    interceptions.router,
    sessions.router,
    models_clients.router,
    journals.router,
    replicas.router,
    storage.router,
    traffic.router,
)
_ROUTERS = (
    providers.router,
    provider_keys.router,
    users.router,
    tokens.router,
    audit.router,
    vault.router,
    diagnosis.router,
    health.router,
    docs.router,
)


def create_app(control: ControlPlane) -> FastAPI:
    """The application on what the start has made ready."""
    app = FastAPI(
        title="Ostiary",
        version=__version__,
        description="AI gateway: providers, people and their tokens, and the record of every call.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={"default": {"model": errors.ErrorBody, "description": "What went wrong"}},
    )
    app.state.control = control
    errors.install(app)
    # first: routes are tried in turn, and these are called most
    rpc = rpc_application(control)
    for path in RPC_PATHS:
        app.mount(path, rpc)
    for router in (*_RECORD_ROUTERS, gateway_keys.router):
        app.include_router(router, prefix=PREFIX)
        app.include_router(router, prefix=ALIAS, include_in_schema=False)
    for router in _ROUTERS:
        app.include_router(router)
    app.add_middleware(
        Edge, front_door_secret=control.settings.front_door_secret, unlimited=RPC_PATHS, metrics=control.metrics
    )
    return app
