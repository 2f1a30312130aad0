"""What GitHub Copilot's API answers beside generation and models.

Source: what its clients call; there is no public reference.
"""

import time
from typing import Any

import msgspec

from .answer import PLACEHOLDER
from .asked import BadRequestError

ROUTES = ("/_ping", "/auto", "/agents/*", "/mcp", "/mcp/*", "/.well-known/*")
_HOUR = 3_600


def reply(method: str, route: str, body: bytes) -> dict[str, Any] | None:
    """The answer; None for what is none of these routes. Raises `BadRequestError`."""
    if route == "/_ping" and method in ("GET", "HEAD"):
        return {"status": "ok"}
    if route == "/auto":
        expires = int(time.time()) + _HOUR
        return {"available_models": ["gpt-4.1"], "session_token": f"auto_{PLACEHOLDER}", "expires_at": expires}
    if route.startswith("/agents/") and method == "GET":
        return {"agents": []}
    if route == "/mcp" or route.startswith("/mcp/"):
        return _rpc(body) if method == "POST" else None
    if route.startswith("/.well-known/") and method == "GET":
        return {"resource": route.removeprefix("/.well-known/"), "scopes_supported": ["copilot"]}
    return None


def _rpc(body: bytes) -> dict[str, Any]:
    try:
        call = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise BadRequestError("this is not JSON-RPC") from exc
    return {"jsonrpc": "2.0", "id": call.get("id"), "result": {"tools": []}}


def known(route: str) -> str | None:
    """The name under which a route of these is counted."""
    if route in ROUTES:
        return route
    return next((name for name in ROUTES if name.endswith("/*") and route.startswith(name[:-1])), None)
