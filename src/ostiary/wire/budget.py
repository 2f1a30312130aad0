"""How much of one answer is kept. A provider decides how much it sends; we decide how much of it we hold and record."""

from typing import Final

MAX_FACT_BYTES: Final = 4 * 1024 * 1024
"""Of tool inputs, thoughts and output text, in characters: several times what a model can say in one answer."""

_ENTRY: Final = 1024
"""What an entry costs beside its text, so that empty ones are bounded too."""

PROBLEM: Final = "more than is kept of one answer"


class Budget:
    """Spent by what is kept. Once it is exceeded nothing more is."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_FACT_BYTES

    @property
    def exceeded(self) -> bool:
        return self.left < 0

    def text(self, size: int) -> bool:
        """Whether so much more text may be kept."""
        self.left -= size
        return self.left >= 0

    def entry(self, size: int = 0) -> bool:
        """Whether one more entry with so much text may be kept."""
        return self.text(_ENTRY + size)
