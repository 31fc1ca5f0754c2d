"""What an actor knows of those who send to it: which of their calls came last, and how their clocks go."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from actors.messages import Batch

SENDERS_MAX: Final = 4096
"""Remembered; past it the one that was silent for longest is forgotten."""
CALLS_SEEN: Final = 8
"""The last ones of a sender, by which its clock is judged."""


@dataclass(slots=True)
class _Sender:
    number: int
    behind: deque[timedelta]
    """By how much its clock seemed to be behind ours, at its last calls."""


class Senders:
    """Tells whose clock goes how, and which batch is to be sent again: it comes too late, or nobody can say."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Sender] = OrderedDict()

    def behind(self, batch: Batch, now: datetime) -> timedelta | None:
        """By how much the sender's clock is behind the one that says ``now``; ``None``: the batch is not to be obeyed.

        Its sender has given it up, or it is the first of its sender's: how long that was on its way nobody knows. What
        the way took looks like a clock that is behind: so the least of what the last calls show is taken. For some
        calls after a step of either clock all seem to have been long on their way.
        """
        shown = now - batch.sent_at
        sender = self._known.get(batch.sender)
        if sender is None:
            self._known[batch.sender] = _Sender(batch.number, deque((shown,), CALLS_SEEN))
            if len(self._known) > SENDERS_MAX:
                self._known.popitem(last=False)
            return None
        if batch.number <= sender.number:
            return None
        self._known.move_to_end(batch.sender)
        sender.number = batch.number
        sender.behind.append(shown)
        return min(sender.behind)
