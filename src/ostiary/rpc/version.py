"""The version of the RPC surface, and the rule by which a gateway and a control plane of different builds get on.

Same major, and the client's minor at most the server's. So the control plane is upgraded first and rolled back last.
A change that old clients can ignore raises the minor, any other the major. History, newest last:

1.0  Recorder.Record, Authorizer.IsAuthorized
1.1  ProviderConfigurator.GetAIProviders
1.2  ProviderConfigurator.WatchAIProviders, Authorizer.WatchRevocations, IsAuthorizedResponse.seq
1.3  Fleet.ReportStatus
1.4  KeyStatus.model, since, strikes, cooling, timeline; BreakerStatus.until, since
1.5  Fleet.GetMetrics, ReportStatusRequest.clock_ahead_us, ReportStatusResponse.now_us
"""

MAJOR = 1
MINOR = 5
CURRENT = f"{MAJOR}.{MINOR}"

HEADER_GATEWAY_KEY = "X-Ostiary-Gateway-Key"
HEADER_API_VERSION = "X-Ostiary-Api-Version"
HEADER_BUILD = "X-Ostiary-Build"


def incompatibility(client: str) -> str | None:
    """Why a client of this version cannot be served, naming both versions; None when it can."""
    major, dot, minor = client.partition(".")
    if not (dot and major.isascii() and major.isdigit() and minor.isascii() and minor.isdigit()):
        return f"{HEADER_API_VERSION} must be MAJOR.MINOR, e.g. {CURRENT}; got {client[:32]!r}"
    if int(major) != MAJOR:
        return f"the gateway speaks version {client}, the control plane {CURRENT}: the major versions must be the same"
    if int(minor) > MINOR:
        return f"the gateway speaks version {client}, the control plane {CURRENT}: upgrade the control plane first"
    return None
