"""The format of a worker's journal, shared by the worker that writes it and the link that ships it.

Rules
- Pure: bytes in, frames out. Files, locks and retries are the callers'.
- A journal is a directory named by its id. It holds segments named by the number of their first record, and a lock
  file that is held by whoever may append: the worker while it lives, then the link.
- Records are numbered from 1 without gaps, across segments.
- A frame is a 4-byte big-endian length (never 0), 4 bytes of check, and the payload. The check is the payload's CRC-32
  XOR the low 32 bits of its number: a frame proves its content *and* its place. So after damage the frames behind it
  are found again under their right numbers, and a page of zeros is never a frame.
- `parse` never guesses. What a bad frame means depends on what the caller knows: at the end of a journal that is being
  written it may still be completed; at the end of a dead one it is a torn tail; anywhere else it is damage, and
  `find_next` says where the journal goes on.
"""

import re
from enum import Enum
from struct import Struct
from typing import NamedTuple
from zlib import crc32

LOCK_NAME = "lock"
ROOT_LOCK_NAME = ".lock"
"""Held, in the directory of all journals, while a journal is made or the lock of one is tried."""

BALLAST_NAME = "ballast"
"""Blocks that a writer gives up when the disk is full."""

MAX_PAYLOAD = 64 * 1024**2
"""Bytes a record may have: above a body at its limit, and what the control plane takes in one message."""

HEADER_SIZE = 8
_HEADER = Struct(">II")
_SEGMENT_NAME = re.compile(r"([0-9]{16})\.seg")
_NOT_ZERO = re.compile(rb"[^\x00]")
_SEARCH_BUDGET = 512 * 1024**2


def segment_name(first_seq: int) -> str:
    """The file that begins with this record. Names sort as their numbers do."""
    return f"{first_seq:016d}.seg"


def segment_first_seq(name: str) -> int | None:
    """The reverse of `segment_name`; None for a file that is no segment."""
    found = _SEGMENT_NAME.fullmatch(name)
    return int(found[1]) if found else None


def frame_header(seq: int, payload: bytes) -> bytes:
    """What stands before `payload` in the journal."""
    return _HEADER.pack(len(payload), crc32(payload) ^ (seq & 0xFFFFFFFF))


class Rest(Enum):
    """Why `parse` stopped."""

    CLEAN = "clean"
    """The data ends with a frame."""
    LIMIT = "limit"
    """As many frames as were asked for; there may be more."""
    PARTIAL = "partial"
    """The data ends within a frame."""
    BAD = "bad"
    """No frame of this number stands here: an impossible length, or a check that fails."""


class Parsed(NamedTuple):
    payloads: list[bytes]
    """Records in order, up to `next_seq - 1`."""
    next_seq: int
    """Number of the record behind the last one."""
    end: int
    """Offset behind the last one."""
    rest: Rest
    needed: int
    """Bytes from `end` on that the next frame takes; 0 when unknown."""


def parse(data: bytes, seq: int, *, max_records: int = 1 << 62, max_bytes: int = 1 << 62, skip_to: int = 0) -> Parsed:
    """Read frames from the start of `data`, the first one being record `seq`.

    Stops before a frame that would exceed `max_bytes` of payload, but never before the first. Records below `skip_to`
    are checked and left out, and count towards no limit.
    """
    payloads: list[bytes] = []
    pos = size = 0
    end_of_data = len(data)
    while True:
        left = end_of_data - pos
        if left < HEADER_SIZE:
            return Parsed(payloads, seq, pos, Rest.PARTIAL if left else Rest.CLEAN, 0)
        length, check = _HEADER.unpack_from(data, pos)
        if not 0 < length <= MAX_PAYLOAD:
            return Parsed(payloads, seq, pos, Rest.BAD, 0)
        start = pos + HEADER_SIZE
        if start + length > end_of_data:
            return Parsed(payloads, seq, pos, Rest.PARTIAL, HEADER_SIZE + length)
        kept = seq >= skip_to
        if kept and (len(payloads) >= max_records or (payloads and size + length > max_bytes)):
            return Parsed(payloads, seq, pos, Rest.LIMIT, HEADER_SIZE + length)
        payload = data[start : start + length]
        if crc32(payload) ^ (seq & 0xFFFFFFFF) != check:
            return Parsed(payloads, seq, pos, Rest.BAD, HEADER_SIZE + length)
        if kept:
            payloads.append(payload)
            size += length
        pos = start + length
        seq += 1


class Found(NamedTuple):
    offset: int
    seq: int


def find_next(data: bytes, seq: int) -> Found | None:
    """Where frames go on in `data`, which begins with something that is not record `seq`; None when nowhere.

    A place counts when a frame there has a possible number, and either the next number follows or the data ends with
    it. Frames of 16 MiB and more are passed over, and the search ends after checking 512 MiB: this is salvage.
    """
    budget = _SEARCH_BUDGET
    end_of_data = len(data)
    pos = data.find(0, 1)
    while 0 <= pos <= end_of_data - HEADER_SIZE - 1 and budget > 0:
        length, check = _HEADER.unpack_from(data, pos)
        end = pos + HEADER_SIZE + length
        if length == 0:
            # within a run of zeros a length can only begin in its last three bytes
            run_end = _NOT_ZERO.search(data, pos)
            if run_end is None:
                return None
            pos = max(pos + 1, run_end.start() - 3)
            continue
        if length <= MAX_PAYLOAD and end <= end_of_data:
            budget -= length
            # numbers grow by at most one per smallest frame
            ahead = ((crc32(data[pos + HEADER_SIZE : end]) ^ check) - seq) & 0xFFFFFFFF
            if ahead <= pos // (HEADER_SIZE + 1) + 1 and (end == end_of_data or _holds(data, end, seq + ahead + 1)):
                return Found(pos, seq + ahead)
        pos = data.find(0, pos + 1)
    return None


def _holds(data: bytes, pos: int, seq: int) -> bool:
    """Whether record `seq` stands at `pos`."""
    if len(data) - pos < HEADER_SIZE:
        return False
    length = int.from_bytes(data[pos : pos + 4], "big")
    return bool(parse(data[pos : pos + HEADER_SIZE + length], seq).payloads)
