"""How a target tears its input: the input says it itself, so that it fails alone."""

from collections.abc import Iterator


def control(data: bytes) -> tuple[int, bytes]:
    """The byte that says how, and the input itself."""
    return (data[0] if data else 0), data[1:]


def torn(how: int, data: bytes) -> Iterator[bytes]:
    """`data` in pieces of a size that `how` says: single bytes, some more, or in two."""
    size = how % 16 or max(1, len(data) * (how >> 4) // 16)
    for at in range(0, len(data), size):
        yield data[at : at + size]
