"""Secrets that cannot be printed by accident, and the masked form in which they may be shown."""

from typing import Any, NoReturn


class Secret:
    """A secret text. `repr`, `str`, `format` and `%` give ***; only `reveal()` gives the value.

    Equality is by value so that frozen structs holding one compare; pickling is refused.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself. Call it only where a header is written or a message is encoded."""
        return self._value

    @property
    def masked(self) -> str:
        return mask(self._value)

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")


def mask(value: str) -> str:
    """Show a few characters at each end, as reference D.3 `MaskSecret`.

    4 from 20 characters on, 2 from 10, 1 from 5, else none; `...` alone when that would show all of it.
    """
    if not value:
        return ""
    length = len(value)
    shown = 4 if length >= 20 else 2 if length >= 10 else 1 if length >= 5 else 0
    if length <= 2 * shown or shown == 0:
        return "..."
    return f"{value[:shown]}...{value[-shown:]}"


def secret_enc_hook(obj: Any) -> Any:  # Any: msgspec's hook signature
    """msgspec `enc_hook`: the only way a `Secret` leaves a process, over a private channel."""
    if isinstance(obj, Secret):
        return obj.reveal()
    raise NotImplementedError(f"cannot encode {type(obj).__name__}")


def secret_dec_hook(kind: type, obj: Any) -> Any:  # Any: msgspec's hook signature
    """msgspec `dec_hook`, the other end of `secret_enc_hook`."""
    if kind is Secret:
        return Secret(obj)
    raise NotImplementedError(f"cannot decode {kind.__name__}")
