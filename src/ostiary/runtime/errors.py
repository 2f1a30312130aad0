"""What ends a start."""


class StartError(Exception):
    """The command cannot start. The message is one line for the terminal: the cause, and the cure."""

    exit_status = 1
