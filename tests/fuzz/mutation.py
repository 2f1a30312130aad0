"""Changing an input a little, in the ways that find what parsers overlook. Pure: the randomness is an argument."""

import random
from collections.abc import Callable, Sequence
from typing import Final

MAX_SIZE: Final = 8192

_BYTES: Final = b'\x00\x01\x7f\x80\xff\r\n\t :;,"\\{}[]=0-+_/'


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """`data` with one to four changes, some of them out of `others` and `tokens`."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(_CHANGES)(rng, data, others, tokens)
    return data[:MAX_SIZE]


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice((1, 1, 2, 4, 16, 200)))


def _replace_byte(rng: random.Random, data: bytes, _others: Sequence[bytes], _tokens: Sequence[bytes]) -> bytes:
    begin = rng.randrange(len(data) + 1)
    new = rng.choice(_BYTES) if rng.random() < 0.5 else rng.randrange(256)
    return data[:begin] + bytes((new,)) + data[begin + 1 :]


def _remove(rng: random.Random, data: bytes, _others: Sequence[bytes], _tokens: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, data)
    return data[:begin] + data[end:]


def _repeat(rng: random.Random, data: bytes, _others: Sequence[bytes], _tokens: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, data)
    return data[:end] + data[begin:end] * rng.choice((1, 2, 30)) + data[end:]


def _insert_token(rng: random.Random, data: bytes, _others: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, data)
    return data[:begin] + rng.choice(tokens) + data[rng.choice((begin, end)) :]


def _splice(rng: random.Random, data: bytes, others: Sequence[bytes], _tokens: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    begin, end = _span(rng, other)
    at = rng.randrange(len(data) + 1)
    return data[:at] + (other[begin:] if rng.random() < 0.5 else other[begin:end] + data[at:])


def _move(rng: random.Random, data: bytes, _others: Sequence[bytes], _tokens: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, data)
    rest = data[:begin] + data[end:]
    at = rng.randrange(len(rest) + 1)
    return rest[:at] + data[begin:end] + rest[at:]


_Change = Callable[[random.Random, bytes, Sequence[bytes], Sequence[bytes]], bytes]
_CHANGES: Final[tuple[_Change, ...]] = (
    _replace_byte,
    _replace_byte,
    _remove,
    _repeat,
    _insert_token,
    _insert_token,
    _splice,
    _move,
)
