"""Which build this is: `compiled` where the hot path is C extensions (`make wheel`), else `interpreted`."""

from typing import Final

from . import ids

BUILD: Final = "interpreted" if ids.__file__.endswith(".py") else "compiled"
