"""What clients asked for and were told, and when: all that the checker knows of the outside."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from api.scheduling.commands import keyed_command_id


class Kind(StrEnum):
    """What was asked for."""

    BOOK = "book"
    HOLD = "hold"
    MOVE = "move"
    MOVE_AWAY = "move_away"
    CANCEL = "cancel"


class Outcome(StrEnum):
    """What one attempt, or all attempts under a key together, came to."""

    OK = "ok"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One request, and its answer."""

    invoked_at: float
    """On the monotonic clock, as all times here."""
    returned_at: float = float("inf")
    status: int = 0
    """Of HTTP; 0 without an answer."""
    body: bytes = b""

    @property
    def outcome(self) -> Outcome:
        """A refusal is definite for this request; 202, 5xx and silence say nothing."""
        if self.status in (200, 201):
            return Outcome.OK
        return Outcome.FAIL if 400 <= self.status < 500 else Outcome.UNKNOWN

    @property
    def answer(self) -> dict[str, Any]:
        """The body, read."""
        answer: dict[str, Any] = orjson.loads(self.body)
        return answer


@dataclass(slots=True, kw_only=True)
class Operation:
    """One wish under one Idempotency-Key, repeated until an answer stood."""

    kind: Kind
    user_id: str
    key: str
    doctor_id: str
    """Whose calendar it is about; of a move, that of the slot asked for."""
    slot_id: str | None = None
    visit_id: str | None = None
    """Of a move or cancellation."""
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def command_id(self) -> str:
        """Under which the journal knows it."""
        return keyed_command_id(self.user_id, self.key)

    @property
    def good(self) -> Attempt | None:
        """The first good answer."""
        answered = [attempt for attempt in self.attempts if attempt.outcome is Outcome.OK]
        return min(answered, key=lambda attempt: attempt.returned_at, default=None)

    @property
    def outcome(self) -> Outcome:
        """Failed only if every attempt was: any other may have had its effect."""
        if self.good is not None:
            return Outcome.OK
        if any(attempt.outcome is Outcome.UNKNOWN for attempt in self.attempts):
            return Outcome.UNKNOWN
        return Outcome.FAIL

    @property
    def told(self) -> bool:
        """Whether some attempt was answered, for good or not."""
        return any(attempt.outcome is not Outcome.UNKNOWN for attempt in self.attempts)

    @property
    def invoked_at(self) -> float:
        """When it was first asked for."""
        return min(attempt.invoked_at for attempt in self.attempts)


class History:
    """All operations, in the order they began."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.answers: Counter[int] = Counter()
        """Attempts by HTTP status; 0 without one."""
        self._watches: list[Recovery] = []

    def begin(self, operation: Operation) -> None:
        """Note that it is about to be asked for."""
        self.operations.append(operation)

    def attempted(self, operation: Operation, attempt: Attempt) -> None:
        """Note an answer, or that there was none."""
        self.answers[attempt.status] += 1
        if attempt.outcome is Outcome.OK:
            for watch in self._watches:
                watch.answered(operation.doctor_id, attempt)

    def watch(self, doctor_ids: frozenset[str]) -> Recovery:
        """From now on, note who answers well again."""
        recovery = Recovery(doctor_ids)
        self._watches.append(recovery)
        return recovery

    def forget(self, recovery: Recovery) -> None:
        """It is watched no longer."""
        self._watches.remove(recovery)

    def counts(self, first: int = 0, end: int | None = None) -> Counter[Outcome]:
        """How many of these operations came to what."""
        return Counter(operation.outcome for operation in self.operations[first:end])

    def lines(self) -> Iterator[bytes]:
        """The history for people: one operation a line."""
        for operation in self.operations:
            yield orjson.dumps(operation, default=lambda body: body.decode(errors="replace")) + b"\n"


class Recovery:
    """When calendars gave their first good answer since a moment, by the doctor."""

    def __init__(self, doctor_ids: frozenset[str]) -> None:
        self.since = self._from = time.monotonic()
        self._waiting = set(doctor_ids)
        self.answered_at: dict[str, float] = {}

    @property
    def complete(self) -> bool:
        """Whether all have."""
        return not self._waiting

    def restart(self, since: float | None = None) -> None:
        """Only what is asked for from now on counts; the time runs from now on, or since a moment before."""
        self._from = time.monotonic()
        self.since = self._from if since is None else since
        self._waiting |= set(self.answered_at)
        self.answered_at.clear()

    def answered(self, doctor_id: str, attempt: Attempt) -> None:
        """Note a good answer, unless it was asked for before: then it may have been on its way."""
        if attempt.invoked_at >= self._from and doctor_id in self._waiting:
            self._waiting.discard(doctor_id)
            self.answered_at[doctor_id] = attempt.returned_at
