"""Which API keys the fake provider takes.

Rules
- Pure. Any key will do except none at all, those with a telling prefix, and those that a test has scripted.
- A scripted rule goes before a prefix; with `times` it holds for so many requests and is gone.
"""

from typing import Any

from msgspec import Struct

_PREFIXES = (
    ("sk-revoked", "status=401"),
    ("sk-limited", "status=429 retry-after=7"),
    ("sk-quota", "status=429 code=insufficient_quota error-type=insufficient_quota"),
    ("sk-forbidden", "status=403"),
)
MISSING = '{"status": 401, "message": "You didn\'t provide an API key."}'


class KeyRule(Struct, frozen=True):
    """What requests with a key get: a control string, for `times` requests (0: until it is taken back)."""

    control: str
    times: int = 0


class Keys:
    def __init__(self) -> None:
        self._rules: dict[str, KeyRule] = {}

    def verdict(self, key: str) -> str:
        """The control string that this key brings; empty when it is a good one."""
        if not key:
            return MISSING
        rule = self._rules.get(key) if self._rules else None
        if rule is not None:
            if rule.times == 1:
                del self._rules[key]
            elif rule.times:
                self._rules[key] = KeyRule(rule.control, rule.times - 1)
            return rule.control
        if key.startswith("sk-"):
            for prefix, control in _PREFIXES:
                if key.startswith(prefix):
                    return control
        return ""

    def script(self, key: str, rule: KeyRule | None) -> None:
        """Set a key's rule; None makes it an ordinary key again."""
        if rule is None:
            self._rules.pop(key, None)
        else:
            self._rules[key] = rule

    def clear(self) -> None:
        self._rules.clear()

    def as_json(self) -> dict[str, Any]:
        return {key: {"control": rule.control, "times": rule.times} for key, rule in self._rules.items()}
