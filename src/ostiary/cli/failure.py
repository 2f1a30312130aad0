"""How a command fails: one line that names the cause and the cure."""

from typing import NoReturn


class Failure(Exception):  # noqa: N818  it is not a bug, it is the answer
    """Ends the command with `message` on stderr and `status`."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Refused(Failure):
    """A server answered with an error, of HTTP status `code`."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def wrong_usage(message: str) -> NoReturn:
    """The command was called wrongly: exit status 2."""
    raise Failure(message, 2)
