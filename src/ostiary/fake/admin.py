"""The paths under `/fake/` by which a test directs the fake provider and reads its ledger.

GET    /fake/requests[?after=N&limit=N&mark=M&marks=1]   counts, aborts; in mode full the entries, of one mark or of all;
                                                  with marks=1 mark → count
DELETE /fake/requests                             forget them
PUT    /fake/ledger     {"mode": "counts" | "marks" | "full"}
GET    /fake/keys                                 the scripted keys
POST   /fake/keys       {"key": K, "control": C, "times": N}     an empty control makes K an ordinary key again
DELETE /fake/keys
GET    /fake/replay · POST /fake/replay (see `replay.Recording`) · DELETE /fake/replay
GET    /fake/behaviour · PUT /fake/behaviour {"control": C}      for requests that bring none
GET    /fake/aws · DELETE /fake/aws               who may sign; as at the start
POST   /fake/aws/keys   {"access_key": K, "secret_key": S}       an empty secret takes K back
POST   /fake/aws/roles  {"arn": A, "external_id": E, "seconds": N}
POST   /fake/aws/profiles {"arn": A, "model": M}
PUT    /fake/aws/metadata {"enabled": B, "role": R, "seconds": N, "region": R}
GET    /fake/ready
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from . import replay
from .aws_identity import Metadata, Profile, Role
from .behaviour import PLAIN, behaviour
from .delivery import Client, Reply, Script, script
from .keys import KeyRule
from .ledger import Mode
from .provider import FakeProvider

_MAX_ENTRIES = 10_000


class _KeyOrder(Struct, forbid_unknown_fields=True):
    key: str
    control: str = ""
    times: int = 0


class _Control(Struct, forbid_unknown_fields=True):
    control: str


class _AwsKey(Struct, forbid_unknown_fields=True):
    access_key: str
    secret_key: str = ""


class _LedgerMode(Struct, forbid_unknown_fields=True):
    mode: Mode


class AdminPaths:
    """Answers the paths above for one provider."""

    def __init__(self, provider: FakeProvider) -> None:
        self._provider = provider
        self._paths: dict[tuple[str, str], Callable[[dict[str, str], bytes], Any]] = {
            ("GET", "/fake/requests"): self._requests,
            ("DELETE", "/fake/requests"): self._forget,
            ("PUT", "/fake/ledger"): self._set_mode,
            ("GET", "/fake/keys"): lambda _query, _body: provider.keys.as_json(),
            ("POST", "/fake/keys"): self._script_key,
            ("DELETE", "/fake/keys"): lambda _query, _body: provider.keys.clear(),
            ("GET", "/fake/replay"): lambda _query, _body: provider.replays.as_json(),
            ("POST", "/fake/replay"): lambda _query, body: provider.replays.add(replay.decode(body)),
            ("DELETE", "/fake/replay"): lambda _query, _body: provider.replays.clear(),
            ("GET", "/fake/behaviour"): lambda _query, _body: {"control": provider.default},
            ("PUT", "/fake/behaviour"): self._set_default,
            ("GET", "/fake/aws"): lambda _query, _body: provider.aws.identities.as_json(),
            ("DELETE", "/fake/aws"): lambda _query, _body: provider.aws.identities.clear(),
            ("POST", "/fake/aws/keys"): self._set_aws_key,
            ("POST", "/fake/aws/roles"): self._set_role,
            ("POST", "/fake/aws/profiles"): self._set_profile,
            ("PUT", "/fake/aws/metadata"): self._set_metadata,
            ("GET", "/fake/ready"): lambda _query, _body: {"ready": True},
        }

    def __call__(self, method: str, target: str, body: bytes) -> Script:
        path, _, query = target.partition("?")
        serve = self._paths.get((method, path))
        if serve is None:
            known = ", ".join(f"{verb} {place}" for verb, place in self._paths)
            return _json(404, {"error": f"{method} {path} is unknown; known are {known}"})
        try:
            answer = serve({name: values[-1] for name, values in parse_qs(query).items()}, body)
        except (ValueError, msgspec.DecodeError) as exc:
            return _json(400, {"error": str(exc)})
        return _json(200, {} if answer is None else answer)

    def _requests(self, query: dict[str, str], _body: bytes) -> dict[str, Any]:
        ledger = self._provider.ledger
        answer = ledger.summary()
        if query.get("marks"):
            answer["marks"] = dict(ledger.marks)
        if ledger.mode == "full":
            after, limit = int(query.get("after", -1)), min(int(query.get("limit", 1000)), _MAX_ENTRIES)
            numbers = range(after + 1, ledger.count)
            mark = query.get("mark")
            held = (ledger.entries[number] for number in numbers if number in ledger.entries)
            found = (entry for entry in held if mark is None or entry.mark == mark)
            answer["requests"] = [entry for _, entry in zip(range(limit), found, strict=False)]
        return answer

    def _forget(self, _query: dict[str, str], _body: bytes) -> None:
        self._provider.ledger.reset()

    def _set_mode(self, _query: dict[str, str], body: bytes) -> None:
        self._provider.ledger.mode = msgspec.json.decode(body, type=_LedgerMode).mode

    def _script_key(self, _query: dict[str, str], body: bytes) -> None:
        order = msgspec.json.decode(body, type=_KeyOrder)
        behaviour(order.control)  # refuses a misspelt control here, where the test sees it
        self._provider.keys.script(order.key, KeyRule(order.control, order.times) if order.control else None)

    def _set_aws_key(self, _query: dict[str, str], body: bytes) -> None:
        order = msgspec.json.decode(body, type=_AwsKey)
        self._provider.aws.identities.set_key(order.access_key, order.secret_key)

    def _set_role(self, _query: dict[str, str], body: bytes) -> None:
        self._provider.aws.identities.set_role(msgspec.json.decode(body, type=Role))

    def _set_profile(self, _query: dict[str, str], body: bytes) -> None:
        self._provider.aws.identities.set_profile(msgspec.json.decode(body, type=Profile))

    def _set_metadata(self, _query: dict[str, str], body: bytes) -> None:
        self._provider.aws.identities.metadata = msgspec.json.decode(body, type=Metadata)

    def _set_default(self, _query: dict[str, str], body: bytes) -> None:
        self._provider.default = msgspec.json.decode(body, type=_Control).control


def _json(status: int, answer: Any) -> Script:
    reply = Reply(status, (("content-type", "application/json"),), (msgspec.json.encode(answer),))
    return script(reply, PLAIN, Client(), b"")
