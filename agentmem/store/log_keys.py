"""Keys of the log: segments, each a str or a whole number, as bytes that sort as the keys do.

Every segment ends by itself, so all keys below a prefix are one range, and ("a",) is no prefix of ("ab",).
"""

from __future__ import annotations

from collections.abc import Sequence

from agentmem.errors import InvalidInput
from agentmem.text import check_text

Segment = str | int
Key = tuple[Segment, ...]

MOST_SEGMENTS = 16
LONGEST_SEGMENT = 512
"""Characters of one segment."""
_NUMBER, _TEXT = b"n", b"t"
_NUMBER_BYTES = 8
_MOST = 2**63 - 1


def check_key(key: object, what: str = "key", least: int = 1) -> Key:
    """A key, or with ``least`` 0 a prefix: a str, or a sequence of at most 16 segments.

    Raises:
        InvalidInput: a segment that is empty, too long, or no str or whole number from 0; or too many, or none.
    """
    if isinstance(key, str):
        key = (key,)
    if not isinstance(key, Sequence) or not least <= len(key) <= MOST_SEGMENTS:
        raise InvalidInput(f"{what} is a str, or {least} to {MOST_SEGMENTS} segments in a tuple, not {key!r:.80}")
    for segment in key:
        if isinstance(segment, str):
            check_text(segment, f"a segment of {what}", LONGEST_SEGMENT)
        elif isinstance(segment, bool) or not isinstance(segment, int) or not 0 <= segment <= _MOST:
            raise InvalidInput(f"a segment of {what} is a str or a whole number from 0 to 2**63 - 1, not {segment!r}")
    return tuple(key)


def encode(key: Key) -> bytes:
    """Bytes of a key: numbers come before text, in the order of numbers; text in the order of its code points."""
    return b"".join(
        _TEXT + segment.encode() + b"\0" if isinstance(segment, str) else _NUMBER + segment.to_bytes(_NUMBER_BYTES)
        for segment in key
    )


def decode(data: bytes) -> Key:
    """Inverse of ``encode``."""
    key: list[Segment] = []
    at = 0
    while at < len(data):
        kind, at = data[at : at + 1], at + 1
        if kind == _NUMBER:
            key.append(int.from_bytes(data[at : at + _NUMBER_BYTES]))
            at += _NUMBER_BYTES
        else:
            end = data.index(b"\0", at)
            key.append(data[at:end].decode())
            at = end + 1
    return tuple(key)


def below(prefix: Key) -> tuple[bytes, bytes]:
    """All keys that begin with these segments and have more: from the first bytes, up to but without the second."""
    begin = encode(prefix)
    return begin + b"\0", begin + b"\xff"


def number_below(prefix: Key) -> tuple[bytes, bytes]:
    """The keys of ``below`` that go on with a number, and those under them."""
    begin = encode(prefix) + _NUMBER
    return begin, begin + b"\xff" * (_NUMBER_BYTES + 1)
