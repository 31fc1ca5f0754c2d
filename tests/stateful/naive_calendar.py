"""A deliberately naive calendar: plain lists, every question answered by looking at everything.

It says of a command which refusals would be right (none: it must be accepted) and keeps the state it leads to. It was
written from the contract and the design, not from the code it is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from actors.policy import Policy

Interval = tuple[datetime, datetime]


@dataclass
class NaiveSlot:
    id: str
    start: datetime
    end: datetime
    location: str
    withdrawn: bool = False
    by_hand: bool = False


@dataclass
class NaiveHold:
    id: str
    slot: str
    user: str
    until: datetime


@dataclass
class NaiveVisit:
    id: str
    patient: str
    slot: str
    start: datetime
    end: datetime
    status: str = "booked"
    version: int = 1
    moves: int = 0
    away: str | None = None
    """The move with which it left for another doctor."""
    over: bool = False
    """It has ended and that is written down: the calendar has let it go."""


@dataclass
class NaiveClosure:
    id: str
    windows: list[tuple[datetime, datetime, str | None]]
    entered: datetime
    removed: datetime | None = None


@dataclass
class NaiveCalendar:
    policy: Policy
    slots: list[NaiveSlot] = field(default_factory=list)
    holds: list[NaiveHold] = field(default_factory=list)
    visits: list[NaiveVisit] = field(default_factory=list)
    closures: list[NaiveClosure] = field(default_factory=list)
    kept: list[tuple[str, str, str]] = field(default_factory=list)
    """Move, slot and the appointment that is to come."""
    elsewhere: list[tuple[str, datetime, datetime]] = field(default_factory=list)
    """Visits of patients at other doctors."""

    # Looking

    def slot(self, slot_id: str) -> NaiveSlot | None:
        return next((slot for slot in self.slots if slot.id == slot_id), None)

    def visit(self, visit_id: str) -> NaiveVisit | None:
        here = (visit for visit in self.visits if visit.id == visit_id and visit.away is None and not visit.over)
        return next(here, None)

    def live(self) -> list[NaiveVisit]:
        return [v for v in self.visits if v.away is None and v.status in ("booked", "rescheduled", "arrived")]

    def in_slot(self, slot_id: str) -> NaiveVisit | None:
        return next((visit for visit in self.live() if visit.slot == slot_id), None)

    def closed(self, slot: NaiveSlot) -> bool:
        return slot.withdrawn or slot.by_hand or any(self.covers(closure, slot) for closure in self.closures)

    @staticmethod
    def covers(closure: NaiveClosure, slot: NaiveSlot) -> bool:
        """Whether it blocks the slot: what had ended when it came or went stayed as it was."""
        if slot.end <= closure.entered or (closure.removed is not None and slot.end > closure.removed):
            return False
        return any(
            start < slot.end and slot.start < end and location in (None, slot.location)
            for start, end, location in closure.windows
        )

    def displaced(self) -> set[str]:
        return {v.id for v in self.live() if (slot := self.slot(v.slot)) is not None and self.closed(slot)}

    def standing(self, slot_id: str, now: datetime) -> NaiveHold | None:
        return next((hold for hold in self.holds if hold.slot == slot_id and hold.until > now), None)

    def status(self, slot: NaiveSlot, now: datetime | None) -> str:
        """What a slot reads as; without a time, as if no hold had ended that nobody has noted."""
        if slot.withdrawn:
            return "cancelled"
        if self.closed(slot):
            return "blocked"
        if self.in_slot(slot.id):
            return "booked"
        if any(kept == slot.id for _, kept, _ in self.kept):
            return "held"
        holds = [hold for hold in self.holds if hold.slot == slot.id]
        return "held" if any(now is None or hold.until > now for hold in holds) else "free"

    # Refusals that would be right

    def offered(self, slot_id: str, now: datetime, *, override: bool) -> set[str]:
        slot = self.slot(slot_id)
        if slot is None or self.closed(slot) or slot.start <= now:
            return {"slot_unavailable"}
        wrong = set()
        if not override:
            ahead = slot.start - now
            if ahead < self.policy.book_cutoff:
                wrong.add("too_late")
            if self.policy.horizon is not None and ahead > self.policy.horizon:
                wrong.add("slot_unavailable")
        return wrong

    def wrong_to_take(self, slot_id: str, user: str, hold_id: str | None, now: datetime) -> set[str]:
        wrong = set()
        hold = self.standing(slot_id, now)
        if hold_id is not None and (hold is None or hold.id != hold_id or hold.user != user):
            wrong.add("hold_expired")
        if self.in_slot(slot_id) or any(kept == slot_id for _, kept, _ in self.kept):
            wrong.add("slot_taken")
        if hold is not None and hold.user != user:
            wrong.add("slot_taken")
        return wrong

    def somebody_there(self, slot_id: str, but: str | None = None) -> set[str]:
        slot = self.slot(slot_id)
        if slot is None:
            return set()
        times = [(v.start, v.end) for v in self.live() if v.id != but]
        kept = [self.slot(kept) for _, kept, _ in self.kept if kept != slot_id]
        times += [(other.start, other.end) for other in kept if other is not None]
        return {"slot_unavailable", "slot_taken"} if overlaps((slot.start, slot.end), times) else set()

    def patient_busy(self, patient: str, at: Interval, but: str | None = None) -> set[str]:
        times = [(v.start, v.end) for v in self.live() if v.patient == patient and v.id != but]
        times += [(start, end) for who, start, end in self.elsewhere if who == patient]
        return {"patient_overlap"} if overlaps(at, times) else set()

    def visits_to_come(self, patient: str, now: datetime) -> int:
        here = sum(v.patient == patient and v.end > now for v in self.live())
        return here + sum(who == patient and end > now for who, _, end in self.elsewhere)

    def holds_of(self, user: str, now: datetime) -> int:
        return sum(hold.user == user and hold.until > now for hold in self.holds)

    def not_waiting(self, visit_id: str, version: int | None, *, arrived_too: bool = False) -> set[str]:
        visit = self.visit(visit_id)
        if visit is None:
            return {"not_live"}
        wrong = set()
        if version is not None and version != visit.version:
            wrong.add("version_conflict")
        if visit not in self.live():
            wrong.add("not_live")
        if visit.status == "arrived" and not arrived_too:
            wrong.add("already_arrived")
        return wrong

    def wrong_to_move(self, visit: NaiveVisit, now: datetime, *, override: bool) -> set[str]:
        if override or visit.id in self.displaced():
            return set()
        wrong = set()
        if now > visit.start - self.policy.move_cutoff:
            wrong.add("too_late")
        if self.policy.moves_max and visit.moves >= self.policy.moves_max:
            wrong.add("limit_reached")
        return wrong

    # What happens

    def close_over(self, before: set[str], after_displaced: set[str]) -> None:
        """Raise the version of every visit that lost or regained its slot."""
        for visit in self.live():
            if (visit.id in before) != (visit.id in after_displaced):
                visit.version += 1
        self.holds = [hold for hold in self.holds if not self.closed_id(hold.slot)]

    def closed_id(self, slot_id: str) -> bool:
        slot = self.slot(slot_id)
        return slot is not None and self.closed(slot)

    def use_hold(self, slot_id: str) -> None:
        self.holds = [hold for hold in self.holds if hold.slot != slot_id]


def overlaps(one: Interval, others: list[Interval]) -> bool:
    return any(start < one[1] and one[0] < end for start, end in others)
