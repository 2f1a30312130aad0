"""How long to wait before something that has ended is started again. Pure."""


class Backoff:
    """Doubles from `first` to `most` seconds; starts over once a life has lasted `steady` seconds."""

    def __init__(self, first: float = 0.05, most: float = 10.0, steady: float = 10.0) -> None:
        self._first = first
        self._most = most
        self._steady = steady
        self.failures = 0
        """Short lives in a row."""

    def after(self, lived: float) -> float:
        """Seconds to wait after a life of `lived` seconds."""
        self.failures = 1 if lived >= self._steady else self.failures + 1
        # beyond 2**32 the cap has long been reached
        return float(min(self._most, self._first * 2 ** min(self.failures - 1, 32)))
