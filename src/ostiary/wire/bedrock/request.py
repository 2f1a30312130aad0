"""A Messages request as InvokeModel wants it (reference E.3).

Rules
- Members are spliced in the client's bytes; what is not named here stays as it came, order and spacing included.
- Every change is told, for the decision trace. A rewrite that fails tells that and leaves its members as they were: the model
  itself then says what it does not take.
- Thinking first: its budget is computed from `output_config`, which may be dropped after it.
"""

from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from msgspec import Raw, Struct

from ostiary.wire import json_edit
from ostiary.wire.lenient import LenientDecoder, NestingError, object_members

from .generations import FLAGS, NEEDS_FLAG, UNSUPPORTED, Generation, generation_of

ANTHROPIC_VERSION: Final = b'"bedrock-2023-05-31"'

_EFFORT_SHARES: Final = {"low": 0.2, "medium": 0.5, "high": 0.8, "max": 0.95}
_USUAL_SHARE: Final = 0.8
_LEAST_BUDGET: Final = 1024
"""Tokens; a smaller budget is refused."""
_MAX_FLAG: Final = 80
_MAX_TOLD: Final = 8

Changes = dict[str, bytes | None]


class InvokeBody(Struct, frozen=True):
    """`edits` says what differs from the client's body and beta flags."""

    body: bytes
    edits: tuple[str, ...]


class RewriteError(ValueError):
    """Why a rewrite cannot be made."""


class _OutputConfig(Struct):
    effort: str = ""


class _Thinking(Struct):
    type: str = ""


_output_config: Final = LenientDecoder(_OutputConfig)
_thinking: Final = LenientDecoder(_Thinking)


class _Draft:
    """The members as they came, and what is to become of them."""

    def __init__(self, members: dict[str, Raw], generation: Generation, flags: list[str]) -> None:
        self.members = members
        self.generation = generation
        self.flags = flags
        self.kept: list[str] = []
        self.changes: Changes = {}
        self.edits: list[str] = []

    def remove(self, name: str, why: str) -> None:
        if name in self.members:
            self.changes[name] = None
            self.edits.append(f"{name}: removed, {why}")

    def set(self, name: str, value: bytes, edit: str) -> None:
        self.changes[name] = value
        self.edits.append(f"{name}: {edit}")


def beta_flags(header: bytes) -> list[str]:
    """The flags of `Anthropic-Beta`, whose lines are joined by commas."""
    return [flag for part in header.decode("latin-1").split(",") if (flag := part.strip())]


def invoke_body(body: bytes, model: str, flags: Iterable[str] = ()) -> InvokeBody:
    """The body to send to `model`; it is in the path, so not in the body. `flags`: those that the client's header named."""
    try:
        members = object_members(body)
    except NestingError as exc:
        return InvokeBody(body, (f"the body is sent as it came: {exc}",))
    if members is None:
        return InvokeBody(body, ("the body is sent as it came: it is not a JSON object",))
    draft = _Draft(members, generation_of(model), list(flags))
    for name, rewrite in _REWRITES:
        try:
            rewrite(draft)
        except (RewriteError, json_edit.JSONEditError, NestingError, OverflowError) as exc:
            draft.edits.append(f"{name}: left as it was, {exc}")
    try:
        edited = json_edit.edit_members(body, draft.changes)
    except json_edit.JSONEditError as exc:
        return InvokeBody(body, (f"the body is sent as it came: {exc}",))
    return InvokeBody(edited, tuple(draft.edits))


def _convert_thinking(draft: _Draft) -> None:
    raw = draft.members.get("thinking")
    thinking = _thinking.decode(bytes(raw)) if raw is not None else None
    if raw is None or thinking is None:
        return
    wanted = draft.generation.thinking
    if thinking.type == "enabled" and wanted == "adaptive":
        changed = json_edit.edit_members(bytes(raw), {"type": b'"adaptive"', "budget_tokens": None})
        draft.set("thinking", changed, "enabled became adaptive, the model takes no budget")
    elif thinking.type == "adaptive" and wanted == "budget":
        budget = _budget(draft.members)
        if budget < _LEAST_BUDGET:
            draft.set(
                "thinking", b'{"type":"disabled"}', f"adaptive became disabled, a budget of {budget} is too small"
            )
        else:
            enabled = b'{"type":"enabled","budget_tokens":%d}' % budget
            draft.set("thinking", enabled, f"adaptive became enabled with a budget of {budget}, the model needs one")


def _budget(members: dict[str, Raw]) -> int:
    """Tokens to think with: a share of `max_tokens` that goes by the effort asked for."""
    try:
        max_tokens = msgspec.json.decode(members.get("max_tokens", b"0"), type=int)
    except ValueError:
        max_tokens = 0
    if max_tokens <= 0:
        raise RewriteError("max_tokens: field required")
    config = _output_config.decode(bytes(members.get("output_config", b"{}")))
    return int(max_tokens * _EFFORT_SHARES.get(config.effort if config else "", _USUAL_SHARE))


def _filter_flags(draft: _Draft) -> None:
    known = FLAGS | draft.generation.flags
    own = draft.members.get("anthropic_beta")
    asked = draft.flags + (_own_flags(own) if own is not None else [])
    asked = list(dict.fromkeys(asked))
    draft.kept = [flag for flag in asked if flag in known]
    dropped = [flag[:_MAX_FLAG] for flag in asked if flag not in known]
    if dropped:
        more = f" and {len(dropped) - _MAX_TOLD} more" if len(dropped) > _MAX_TOLD else ""
        told = f"{', '.join(dropped[:_MAX_TOLD])}{more}"
        draft.edits.append(f"anthropic-beta: dropped {told}, {draft.generation.name} on Bedrock does not take them")


def _own_flags(raw: Raw) -> list[str]:
    try:
        return msgspec.json.decode(raw, type=list[str])
    except ValueError:
        return []


def _strip_members(draft: _Draft) -> None:
    for name in UNSUPPORTED:
        draft.remove(name, "Bedrock does not take it")
    for name, flag in NEEDS_FLAG.items():
        if flag not in draft.kept and not (name == "output_config" and draft.generation.takes_output_config):
            draft.remove(name, f"Bedrock does not take it without the beta flag {flag}")
    raw = draft.members.get("output_config")
    if raw is not None and draft.generation.takes_output_config and "format" in (object_members(raw) or ()):
        without = json_edit.edit_members(bytes(raw), {"format": None})
        draft.set("output_config", without, "format removed, Bedrock does not take it")


def _place_members(draft: _Draft) -> None:
    """What Anthropic's API has in the body or in header fields and InvokeModel elsewhere."""
    draft.remove("model", "it is in the path")
    draft.remove("stream", "the path says it")
    if "anthropic_version" not in draft.members:
        draft.set("anthropic_version", ANTHROPIC_VERSION, "added")
    if draft.kept:
        flags = msgspec.json.encode(draft.kept)
        if flags != bytes(draft.members.get("anthropic_beta", b"")):
            draft.set("anthropic_beta", flags, "set to the beta flags that are taken")
    else:
        draft.remove("anthropic_beta", "none of its flags is taken")


_REWRITES: Final[tuple[tuple[str, Callable[[_Draft], None]], ...]] = (
    ("thinking", _convert_thinking),
    ("anthropic-beta", _filter_flags),
    ("unsupported members", _strip_members),
    ("model, stream, anthropic_version, anthropic_beta", _place_members),
)
"""In order."""
