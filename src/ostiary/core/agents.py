"""Which client sent a request, and in which of its sessions (reference D.6 to D.8). Pure.

Rules
- Header fields come as a dictionary from lower-case names to values, both as bytes, like `http1`'s heads have them.
- A client is told by the beginning of its `User-Agent`, some by a header; the first match in the table counts.
- A session id is trimmed; a blank one is none. It is at most 256 characters, what is longer is cut.
- Agent-firewall fields come both or not at all, and are checked before anything is recorded.
"""

import json
import re
from functools import lru_cache
from typing import Final, NamedTuple

Fields = dict[bytes, bytes]

MAX_SESSION_ID: Final = 256
MAX_SEQUENCE_NUMBER: Final = 2**31 - 1

CLAUDE_CODE: Final = "Claude Code"
CODEX: Final = "Codex"


class _Sign(NamedTuple):
    """How a client shows itself."""

    client: str
    prefixes: tuple[str, ...] = ()
    """Beginnings of its `User-Agent`, lower case."""
    originator: str = ""
    field: bytes = b""
    """A header field that only it sends."""


_CURSOR_FIELD: Final = b"x-cursor-client-version"

_SIGNS: Final = (
    _Sign("Xum", ("xum/", "mux/")),
    _Sign(CLAUDE_CODE, ("claude",)),
    _Sign(CODEX, ("codex",)),
    _Sign("Zed", ("zed/",)),
    _Sign("GitHub Copilot (VS Code)", ("githubcopilotchat/",)),
    _Sign("GitHub Copilot (CLI)", ("copilot/",)),
    _Sign("Kilo Code", ("kilo-code/",), originator="kilo-code"),
    _Sign("Roo Code", ("roo-code/",), originator="roo-code"),
    _Sign("Coder Agents", ("coder-agents/",)),
    _Sign("Charm Crush", ("charm crush/", "charm-crush/")),
    _Sign("Cursor", field=_CURSOR_FIELD),
    _Sign("OpenCode", ("opencode/",)),
    _Sign("Junie", ("junie:",)),
)

_SESSION_HEADERS: Final[dict[str, tuple[bytes, ...]]] = {
    CLAUDE_CODE: (b"x-claude-code-session-id",),
    CODEX: (b"session-id", b"session_id"),
    "Xum": (b"x-mux-workspace-id",),
    "GitHub Copilot (VS Code)": (b"x-interaction-id",),
    "GitHub Copilot (CLI)": (b"x-client-session-id",),
    "Kilo Code": (b"x-kilocode-taskid",),
    "Coder Agents": (b"x-coder-chat-id",),
    "OpenCode": (b"x-opencode-session", b"x-session-affinity"),
}

_CLAUDE_SESSION: Final = re.compile(r"_session_(.+)$", re.DOTALL)
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NUMBER: Final = re.compile(r"[0-9]{1,10}")


class AgentFirewallError(ValueError):
    """Agent-firewall header fields that cannot be recorded: 400."""


class AgentFirewall(NamedTuple):
    """Which run of the agent firewall a request belongs to, and its place in it."""

    session_id: str
    sequence_number: int


def detect_client(fields: Fields) -> str:
    """The client's name, empty when it is unknown."""
    return _detect(
        fields.get(b"user-agent", b"")[:32], fields.get(b"originator", b"")[:32], fields.get(_CURSOR_FIELD, b"")[:32]
    )


@lru_cache(maxsize=1024)
def _detect(user_agent: bytes, originator: bytes, cursor_version: bytes) -> str:
    agent = _text(user_agent).lower()
    origin = _text(originator).lower()
    for sign in _SIGNS:
        if (
            (sign.prefixes and agent.startswith(sign.prefixes))
            or (origin and origin == sign.originator)
            or (sign.field and _text(cursor_version))
        ):
            return sign.client
    return ""


def session_id(client: str, fields: Fields, user_id: str = "") -> str:
    """The client's own session id, empty when it has none. `user_id` is Anthropic's `metadata.user_id`."""
    for name in _SESSION_HEADERS.get(client, ()):
        if found := _value(fields, name):
            return found[:MAX_SESSION_ID]
    return _session_in_user_id(user_id)[:MAX_SESSION_ID] if client == CLAUDE_CODE and user_id else ""


def agent_firewall(fields: Fields) -> AgentFirewall | None:
    """The agent-firewall fields, None when there are none. Raises `AgentFirewallError`."""
    if b"x-coder-agent-firewall-session-id" not in fields and b"x-coder-agent-firewall-sequence-number" not in fields:
        return None
    session = _value(fields, b"x-coder-agent-firewall-session-id")
    number = _value(fields, b"x-coder-agent-firewall-sequence-number")
    if not session and not number:
        return None
    if not _UUID.fullmatch(session) or not _NUMBER.fullmatch(number) or int(number) > MAX_SEQUENCE_NUMBER:
        raise AgentFirewallError(
            "invalid agent firewall headers: send X-Coder-Agent-Firewall-Session-Id (a UUID) and "
            f"X-Coder-Agent-Firewall-Sequence-Number (0 to {MAX_SEQUENCE_NUMBER}) together, or neither"
        )
    return AgentFirewall(session.lower(), int(number))


def _value(fields: Fields, name: bytes) -> str:
    return _text(fields.get(name, b""))


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace").strip()


def _session_in_user_id(user_id: str) -> str:
    """Newer Claude Code writes JSON there, older ones `user_…_account_…_session_<uuid>`."""
    found = _named_session(user_id)
    if found is None:
        matched = _CLAUDE_SESSION.search(user_id)
        found = matched[1].strip() if matched is not None else ""
    return found if found.isprintable() else ""


def _named_session(user_id: str) -> str | None:
    if not user_id.lstrip().startswith("{"):
        return None
    try:
        named = json.loads(user_id)
    except (ValueError, RecursionError):
        return None
    found = named.get("session_id") if isinstance(named, dict) else None
    return found.strip() if isinstance(found, str) else None
