"""The command line.

`root`       entry point, the table of commands, exit statuses: 0 done, 1 failed, 2 wrong usage
`_lazy`      a command's module is imported when the command runs, so `ostiary --help` stays quick
`failure`    the one exception that ends a command with a line for people
`client`     the REST API as the commands use it: where the server is, whose token, what its errors mean
`output`     tables that fit the terminal, JSON, times; nothing a provider or a user wrote reaches a terminal raw
`given`      secrets and JSON that come from a variable, a file or a prompt, never from an argument
then one module a command group
"""

from .root import main

__all__ = ["main"]
