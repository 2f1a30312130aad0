"""The RPC side of the control plane (design §9): what gateways ask and tell.

`gate`        who may call, with which version; nothing behind it sees a stranger's request
`recorder`    Recorder.Record
`authorizer`  Authorizer: who a token is, and which answers no longer hold
`providers`   ProviderConfigurator: the full set, when to fetch it again, and how a `ProviderSpec` looks on the wire
`beats`       the rhythm of the watches
`fleet`       Fleet.ReportStatus
`mount`       all of them under one ASGI application
"""

from .mount import RPC_PATHS, rpc_application

__all__ = ["RPC_PATHS", "rpc_application"]
