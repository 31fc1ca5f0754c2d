"""Identifiers: UUIDv7 strings (RFC 9562, section 5.7), so that ids made later sort later and indexes stay warm."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

DRAWN_AT_ONCE: Final = 256
"""Asking the system for random bits takes several times as long as all else: it is asked for those of many ids."""
_DIGITS: Final = 20
_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 0b11] for digit in "0123456789abcdef"}

_drawn: Iterator[str] = iter(())


def new_id() -> str:
    """A new UUIDv7 in its 36-character form: 48 bits of milliseconds, 74 random bits. Threads may call it."""
    random = next(_drawn, None)
    while random is None:
        _draw()
        random = next(_drawn, None)
    at = f"{time.time_ns() // 1_000_000:012x}"
    return f"{at[:8]}-{at[8:]}-7{random[:3]}-{_VARIANT[random[3]]}{random[4:7]}-{random[7:19]}"


def lock_key(identifier: str) -> int:
    """A 63-bit key for an advisory lock: the low, random bits of an id. The journal locks patients and users by it."""
    return int(identifier[-17:].replace("-", ""), 16) & (1 << 63) - 1


def _draw() -> None:
    global _drawn
    digits = os.urandom(DRAWN_AT_ONCE * _DIGITS // 2).hex()
    # Over a list: taking the next element of it is one step for every thread, and no two get the same.
    _drawn = iter([digits[start : start + _DIGITS] for start in range(0, len(digits), _DIGITS)])


def _forget() -> None:
    global _drawn
    _drawn = iter(())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
