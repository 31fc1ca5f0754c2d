"""What an actor knows of those who send to it: which of their calls came last, and how their clocks go."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from actors.messages import Batch

SENDERS_MAX: Final = 4096
"""Remembered; past it the one that was silent for longest is forgotten."""


@dataclass(slots=True)
class _Sender:
    number: int
    behind: timedelta
    """By how much its clock seemed to be behind ours at its last call."""


class Senders:
    """Tells whose clock goes how, and which batch comes too late to be obeyed."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Sender] = OrderedDict()

    def behind(self, batch: Batch, now: datetime) -> timedelta | None:
        """By how much the sender's clock is behind the one that says ``now``; ``None``: the batch was given up.

        What the way took looks like a clock that is behind, too: so the lesser of what this call and the one before
        show is taken. After a step of either clock one batch at most seems to have been long on its way.
        """
        shown = now - batch.sent_at
        sender = self._known.get(batch.sender)
        if sender is None:
            self._known[batch.sender] = _Sender(batch.number, shown)
            if len(self._known) > SENDERS_MAX:
                self._known.popitem(last=False)
            return shown
        if batch.number <= sender.number:
            return None
        self._known.move_to_end(batch.sender)
        behind = min(sender.behind, shown)
        sender.number, sender.behind = batch.number, shown
        return behind
