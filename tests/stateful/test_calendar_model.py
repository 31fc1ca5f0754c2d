"""Random commands, times and people, against the naive calendar; and the rows that keep the tables right."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.calendar import Calendar, evolve
from actors.decisions import Busy, Decision, Facts, answer, decide
from actors.errors import Rejection
from actors.journal import Append, collect_changes
from actors.messages import (
    AppointmentMovedOut,
    AppointmentState,
    AppointmentStatus,
    BlockSlot,
    BookAppointment,
    CancelAppointment,
    CancelSlot,
    CloseCalendar,
    Command,
    Event,
    ExpireHolds,
    FinishMove,
    FulfilAppointment,
    HoldSlot,
    MoveOut,
    NewSlot,
    PublishSlots,
    RecordArrival,
    RecordNoShow,
    ReleaseHold,
    RemoveClosure,
    RescheduleAppointment,
    ReserveForMove,
    UnblockSlot,
    Window,
)
from actors.policy import Policy
from tests.given import OPENS, ask, staff, state, uid
from tests.stateful.naive_calendar import (
    NaiveCalendar,
    NaiveClosure,
    NaiveHold,
    NaiveSlot,
    NaiveVisit,
    overlaps,
)

QUARTER = timedelta(minutes=15)
POLICY = Policy(
    book_cutoff=timedelta(minutes=10),
    move_cutoff=timedelta(minutes=20),
    cancel_cutoff=timedelta(minutes=20),
    horizon=timedelta(hours=5),
    hold_ttl=timedelta(minutes=12),
    live_appointments_max=3,
    holds_max=2,
    moves_max=2,
)
users = st.sampled_from([uid(name) for name in ("anna", "boris", "clara")])
patients = st.sampled_from([uid(name) for name in ("p1", "p2", "p3")])
rarely = st.sampled_from((False,) * 5 + (True,) + (False,) * 4)
versions = st.sampled_from((None, None, None, None, None, None, 1, 2, 3))
anything = st.integers(0, 999)


class CalendarMachine(RuleBasedStateMachine):
    """One calendar and its naive twin; every rule does the same to both."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = itertools.count(1)
        self.now = OPENS - timedelta(hours=1)
        self.calendar = Calendar("house")
        self.naive = NaiveCalendar(POLICY)
        self.events: list[tuple[datetime, Event]] = []
        self.tables = Tables()

    # The plumbing

    def new_id(self, kind: str) -> str:
        return uid(f"{kind}{next(self.ids)}")

    def some_slot(self, number: int) -> str:
        """Mostly one that can be taken, sometimes one that cannot, seldom one that is not there."""
        if number % 4 != 3:
            free = [s.id for s in self.naive.slots if s.start > self.now and self.naive.status(s, self.now) == "free"]
            if free:
                return free[number // 4 % len(free)]
        ids = [slot.id for slot in self.naive.slots] + ["ghost"]
        return ids[number // 4 % len(ids)]

    def some_visit(self, number: int) -> str:
        """Mostly one that is live, sometimes one that was, seldom one that never was."""
        live = [visit.id for visit in self.naive.live()]
        ids = live if live and number % 8 != 7 else [visit.id for visit in self.naive.visits] + ["ghost"]
        return ids[number // 8 % len(ids)]

    def some_hold(self, number: int, named: bool) -> str | None:
        if not named:
            return None
        ids = [hold.id for hold in self.naive.holds]
        return ids[number // 8 % len(ids)] if ids and number % 8 != 7 else "ghost"

    def facts(self) -> Facts:
        """Everything that is true elsewhere."""
        busy: dict[str, list[Busy]] = {}
        for number, (patient, start, end) in enumerate(self.naive.elsewhere):
            visit = Busy(appointment_id=f"elsewhere {number}", doctor_id="wilson", start=start, end=end)
            busy.setdefault(patient, []).append(visit)
        return Facts(busy=busy)

    def do(self, command: Command, wrong: set[str]) -> dict[str, Any] | None:
        """The answer to a command for whose refusal ``wrong`` are the right reasons; none if it was refused."""
        before = state(self.calendar)
        try:
            decision = decide(self.calendar, command, self.now, POLICY, self.facts())
        except Rejection as rejection:
            decision = Decision(rejection=rejection)
        assert state(self.calendar) == before, "deciding changed the calendar"
        for event in decision.events:
            evolve(self.calendar, event, self.now)
            self.events.append((self.now, event))
        if decision.rejection is not None:
            assert decision.rejection.code in wrong, (command, decision.rejection, wrong)
            return None
        assert not wrong, (command, wrong)
        return answer(self.calendar, decision)

    # Time, and other doctors

    @initialize(count=st.integers(1, 6))
    def first_slots(self, count: int) -> None:
        self.publish([(2 * number, 2) for number in range(count)], "l1")

    @rule(minutes=st.sampled_from((1, 5, 12, 30)))
    def time_passes(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @rule(patient=patients, quarter=st.integers(-4, 12))
    @precondition(lambda self: len(self.naive.elsewhere) < 4)
    def booked_elsewhere(self, patient: str, quarter: int) -> None:
        start = OPENS + quarter * QUARTER
        if not self.naive.patient_busy(patient, (start, start + QUARTER)):
            self.naive.elsewhere.append((patient, start, start + QUARTER))

    # Patients

    @rule(slot=anything, user=users, override=rarely)
    def hold(self, slot: int, user: str, override: bool) -> None:
        slot_id, hold_id = self.some_slot(slot), self.new_id("h")
        wrong = self.naive.offered(slot_id, self.now, override=override)
        wrong |= self.naive.wrong_to_take(slot_id, user, None, self.now)
        mine = self.naive.standing(slot_id, self.now)
        if mine is None and self.naive.holds_of(user, self.now) >= POLICY.holds_max:
            wrong.add("limit_reached")
        command = ask(HoldSlot, by=user, hold_id=hold_id, slot_id=slot_id, override="because" if override else None)
        if (answered := self.do(command, wrong)) is None:
            return
        if mine is None:
            self.naive.use_hold(slot_id)
            mine = NaiveHold(hold_id, slot_id, user, self.now + POLICY.hold_ttl)
            self.naive.holds.append(mine)
        assert answered["hold"] == {"id": mine.id, "slot_id": slot_id, "expires_at": mine.until}

    @precondition(lambda self: self.naive.holds)
    @rule(hold=anything, user=users)
    def release(self, hold: int, user: str) -> None:
        hold_id = self.some_hold(hold, True)
        user = next((h.user for h in self.naive.holds if h.id == hold_id), user) if hold % 4 else user
        found = [h for h in self.naive.holds if h.id == hold_id and h.user == user and h.until > self.now]
        if self.do(ask(ReleaseHold, by=user, hold_id=hold_id), set() if found else {"not_found"}) is not None:
            self.naive.holds.remove(found[0])

    @rule(slot=anything, user=users, patient=patients, hold=anything, named=rarely, override=rarely)
    def book_too(self, slot: int, user: str, patient: str, hold: int, named: bool, override: bool) -> None:
        """Booking is what is done most."""
        self.book(slot, user, patient, hold, named, override)

    @rule(slot=anything, user=users, patient=patients, hold=anything, named=rarely, override=rarely)
    def book(self, slot: int, user: str, patient: str, hold: int, named: bool, override: bool) -> None:
        slot_id, hold_id, visit_id = self.some_slot(slot), self.some_hold(hold, named), self.new_id("a")
        naive = self.naive
        wrong = naive.offered(slot_id, self.now, override=override)
        wrong |= naive.wrong_to_take(slot_id, user, hold_id, self.now) | naive.somebody_there(slot_id)
        if (there := naive.slot(slot_id)) is not None:
            wrong |= naive.patient_busy(patient, (there.start, there.end))
        if not override and naive.visits_to_come(patient, self.now) >= POLICY.live_appointments_max:
            wrong.add("limit_reached")
        command = ask(
            BookAppointment,
            by=user,
            appointment_id=visit_id,
            slot_id=slot_id,
            patient_id=patient,
            hold_id=hold_id,
            override="because" if override else None,
        )
        if (answered := self.do(command, wrong)) is not None:
            assert there is not None
            naive.use_hold(slot_id)
            naive.visits.append(NaiveVisit(visit_id, patient, slot_id, there.start, there.end))
            self.check_answer(answered, visit_id)

    @precondition(lambda self: self.naive.visits)
    @rule(visit=anything, slot=anything, user=users, hold=anything, named=rarely, version=versions, override=rarely)
    def reschedule(
        self, visit: int, slot: int, user: str, hold: int, named: bool, version: int | None, override: bool
    ) -> None:
        visit_id, slot_id, hold_id = self.some_visit(visit), self.some_slot(slot), self.some_hold(hold, named)
        naive = self.naive
        wrong = naive.not_waiting(visit_id, version)
        wrong |= naive.offered(slot_id, self.now, override=override)
        wrong |= naive.wrong_to_take(slot_id, user, hold_id, self.now) | naive.somebody_there(slot_id, visit_id)
        there, moved = naive.slot(slot_id), naive.visit(visit_id)
        if moved is not None:
            wrong |= naive.wrong_to_move(moved, self.now, override=override)
            if there is not None:
                wrong |= naive.patient_busy(moved.patient, (there.start, there.end), visit_id)
        command = ask(
            RescheduleAppointment,
            by=user,
            appointment_id=visit_id,
            slot_id=slot_id,
            hold_id=hold_id,
            if_version=version,
            override="because" if override else None,
        )
        if (answered := self.do(command, wrong)) is not None:
            assert there is not None
            assert moved is not None
            naive.use_hold(slot_id)
            moved.slot, moved.start, moved.end, moved.status = slot_id, there.start, there.end, "rescheduled"
            moved.version += 1
            moved.moves += 1
            self.check_answer(answered, visit_id)

    @precondition(lambda self: self.naive.visits)
    @rule(visit=anything, version=versions, override=rarely)
    def cancel(self, visit: int, version: int | None, override: bool) -> None:
        visit_id = self.some_visit(visit)
        wrong = self.naive.not_waiting(visit_id, version, arrived_too=True)
        found = self.naive.visit(visit_id)
        bound = found is not None and not override and found.id not in self.naive.displaced()
        if bound and found is not None and self.now > found.start - POLICY.cancel_cutoff:
            wrong.add("too_late")
        command = ask(
            CancelAppointment,
            appointment_id=visit_id,
            if_version=version,
            override="because" if override else None,
        )
        self.end(command, wrong, found, "cancelled")

    @precondition(lambda self: self.naive.visits)
    @rule(visit=anything, version=versions)
    def arrive(self, visit: int, version: int | None) -> None:
        visit_id = self.some_visit(visit)
        wrong = self.naive.not_waiting(visit_id, version)
        command = staff(RecordArrival, appointment_id=visit_id, if_version=version)
        self.end(command, wrong, self.naive.visit(visit_id), "arrived")

    @precondition(lambda self: self.naive.visits)
    @rule(visit=anything, version=versions, missed=st.booleans(), waits=st.booleans())
    def take_place(self, visit: int, version: int | None, missed: bool, waits: bool) -> None:
        visit_id = self.some_visit(visit)
        found = self.naive.visit(visit_id)
        if waits and found is not None:
            self.now = max(self.now, found.start)
        wrong = self.naive.not_waiting(visit_id, version, arrived_too=not missed)
        if found is not None and found.start > self.now:
            wrong.add("too_early")
        command = staff(RecordNoShow if missed else FulfilAppointment, appointment_id=visit_id, if_version=version)
        self.end(command, wrong, found, "noshow" if missed else "fulfilled")

    def end(self, command: Command, wrong: set[str], visit: NaiveVisit | None, status: str) -> None:
        if (answered := self.do(command, wrong)) is not None:
            assert visit is not None
            visit.status = status
            visit.version += 1
            self.check_answer(answered, visit.id)

    # The clinic

    @rule(
        openings=st.lists(st.tuples(st.integers(-2, 16), st.integers(1, 3)), min_size=1, max_size=4),
        location=st.sampled_from(("l1", "l2")),
    )
    def publish(self, openings: list[tuple[int, int]], location: str) -> None:
        new = [
            NewSlot(
                id=self.new_id("s"),
                start=OPENS + quarter * QUARTER,
                end=OPENS + (quarter + quarters) * QUARTER,
                location_id=location,
            )
            for quarter, quarters in openings
        ]
        naive = self.naive
        opened: list[NaiveSlot] = []
        kept = 0
        skipped = []
        for slot in sorted(new, key=lambda slot: slot.start):
            open_ones = [each for each in naive.slots if not each.withdrawn]
            if any((each.start, each.end) == (slot.start, slot.end) for each in open_ones):
                kept += 1
                continue
            wide = NaiveSlot(slot.id, slot.start, slot.end, location)
            why = set()
            if slot.start <= self.now:
                why.add("past")
            if any(each.withdrawn and (each.start, each.end) == (slot.start, slot.end) for each in naive.slots):
                why.add("cancelled")
            if overlaps((slot.start, slot.end), [(each.start, each.end) for each in open_ones]):
                why.add("overlap")
            if any(naive.covers(closure, wide) for closure in naive.closures):
                why.add("closed")
            if why:
                skipped.append((slot.start, why))
            else:
                naive.slots.append(wide)
                opened.append(wide)
        answered = self.do(staff(PublishSlots, slots=tuple(new)), set())
        assert answered is not None
        assert (answered["opened"], answered["kept"], len(answered["skipped"])) == (len(opened), kept, len(skipped))
        for told, (start, why) in zip(answered["skipped"], skipped, strict=True):
            assert told["start"] == start
            assert told["why"] in why

    @rule(
        windows=st.lists(
            st.tuples(st.integers(-2, 12), st.integers(1, 3), st.sampled_from((None, "l1", "l2"))),
            min_size=1,
            max_size=2,
        ),
        dry_run=rarely,
    )
    def close(self, windows: list[tuple[int, int, str | None]], dry_run: bool) -> None:
        times = [
            (OPENS + quarter * QUARTER, OPENS + (quarter + length) * QUARTER, location)
            for quarter, length, location in windows
        ]
        closure = NaiveClosure(self.new_id("c"), times, entered=self.now)
        naive = self.naive
        blocked = sum(naive.covers(closure, slot) and not naive.closed(slot) for slot in naive.slots)
        before = naive.displaced()
        command = staff(
            CloseCalendar,
            closure_id=closure.id,
            windows=tuple(Window(start=start, end=end, location_id=location) for start, end, location in times),
            dry_run=dry_run,
        )
        naive.closures.append(closure)
        after = naive.displaced()
        if dry_run:
            naive.closures.remove(closure)
        else:
            naive.close_over(before, after)
        answered = self.do(command, set())
        assert answered is not None
        assert answered["blocked"] == blocked
        assert {each["id"] for each in answered["displaced"]} == after - before
        for each in answered["displaced"]:
            visit = naive.visit(each["id"])
            assert visit is not None
            assert (each["version"], each["displaced"]) == (visit.version, not dry_run)

    @precondition(lambda self: self.naive.closures)
    @rule(number=anything)
    def remove_closure(self, number: int) -> None:
        naive = self.naive
        ids = [closure.id for closure in naive.closures if closure.removed is None or number % 8 == 6] + ["ghost"]
        closure_id = ids[number % len(ids)] if number % 8 == 7 else ids[0]
        before, closed = naive.displaced(), [slot for slot in naive.slots if naive.closed(slot)]
        found = [each for each in naive.closures if each.id == closure_id and each.removed is None]
        for closure in found:
            closure.removed = self.now
        naive.close_over(before, naive.displaced())
        answered = self.do(staff(RemoveClosure, closure_id=closure_id), set() if found else {"not_found"})
        assert answered is None or answered["opened"] == sum(not naive.closed(slot) for slot in closed)

    @rule(number=anything, what=st.sampled_from((BlockSlot, UnblockSlot, CancelSlot, UnblockSlot)))
    def one_slot(self, number: int, what: type[BlockSlot | UnblockSlot | CancelSlot]) -> None:
        naive = self.naive
        slot_id = self.some_slot(number)
        slot = naive.slot(slot_id)
        wrong = {"slot_unavailable"} if slot is None or (slot.withdrawn and what is not CancelSlot) else set()
        answered = self.do(staff(what, slot_id=slot_id), wrong)
        if answered is None or slot is None:
            return
        before = naive.displaced()
        if what is CancelSlot:
            slot.withdrawn = True
        else:
            slot.by_hand = what is BlockSlot
        naive.close_over(before, naive.displaced())
        assert answered["slot"]["status"] == naive.status(slot, self.now)

    @rule()
    def expire_holds(self) -> None:
        self.do(staff(ExpireHolds), set())
        self.naive.holds = [hold for hold in self.naive.holds if hold.until > self.now]

    # Moves across calendars

    @rule(slot=anything, user=users, hold=anything, named=rarely, away=anything)
    def reserve(self, slot: int, user: str, hold: int, named: bool, away: int) -> None:
        """A visit is to come: one that left before, or a strange one."""
        naive = self.naive
        slot_id, hold_id, move_id = self.some_slot(slot), self.some_hold(hold, named), self.new_id("m")
        coming = {visit_id for _, _, visit_id in naive.kept}
        gone = [visit.id for visit in naive.visits if visit.away is not None and visit.id not in coming]
        visit_id = gone[away % len(gone)] if gone else self.new_id("a")
        wrong = naive.offered(slot_id, self.now, override=False)
        wrong |= naive.wrong_to_take(slot_id, user, hold_id, self.now) | naive.somebody_there(slot_id)
        command = ask(
            ReserveForMove,
            by=user,
            move_id=move_id,
            slot_id=slot_id,
            appointment_id=visit_id,
            source_doctor_id="wilson",
            hold_id=hold_id,
        )
        if self.do(command, wrong) is not None:
            naive.use_hold(slot_id)
            naive.kept.append((move_id, slot_id, visit_id))

    @precondition(lambda self: self.naive.kept)
    @rule(number=anything, comes=st.booleans(), patient=patients)
    def finish_move(self, number: int, comes: bool, patient: str) -> None:
        naive = self.naive
        move_id, slot_id, visit_id = naive.kept[number % len(naive.kept)]
        slot = naive.slot(slot_id)
        assert slot is not None
        before = next((visit for visit in naive.visits if visit.id == visit_id), None)
        if before is None:
            before = NaiveVisit(visit_id, patient, slot_id, slot.start, slot.end, status="rescheduled", version=4)
        # What the source would have refused does not come.
        comes = comes and not naive.patient_busy(before.patient, (slot.start, slot.end))
        naive.kept.remove((move_id, slot_id, visit_id))
        if not comes:
            assert self.do(staff(FinishMove, move_id=move_id), set()) is not None
            return
        visit = replace(before, slot=slot_id, start=slot.start, end=slot.end, away=None, status="rescheduled")
        visit.version += 1
        visit.moves += 1
        coming = self.state_of(visit)
        visit.version += naive.closed(slot)  # It is displaced as it comes, which is told as a change of its own.
        naive.visits = [*(each for each in naive.visits if each.id != visit_id), visit]
        answered = self.do(staff(FinishMove, move_id=move_id, appointment=coming), set())
        assert answered is not None
        self.check_answer(answered, visit_id)
        assert self.do(staff(FinishMove, move_id=move_id), set()) == {}

    @precondition(lambda self: self.naive.visits)
    @rule(visit=anything, quarter=st.integers(-2, 12), version=versions, override=rarely)
    def move_out(self, visit: int, quarter: int, version: int | None, override: bool) -> None:
        naive = self.naive
        visit_id, move_id = self.some_visit(visit), self.new_id("m")
        start = OPENS + quarter * QUARTER
        slot = NewSlot(id=self.new_id("t"), start=start, end=start + QUARTER, location_id="l9")
        wrong = naive.not_waiting(visit_id, version)
        found = naive.visit(visit_id)
        if found is not None:
            wrong |= naive.wrong_to_move(found, self.now, override=override)
            wrong |= naive.patient_busy(found.patient, (slot.start, slot.end), visit_id)
        command = ask(
            MoveOut,
            move_id=move_id,
            appointment_id=visit_id,
            target_doctor_id="wilson",
            slot=slot,
            if_version=version,
            override="because" if override else None,
        )
        answered = self.do(command, wrong)
        if answered is None:
            assert type(self.events[-1][1]).__name__ == "MoveRefused"
            return
        assert found is not None
        found.slot, found.start, found.end, found.status = slot.id, slot.start, slot.end, "rescheduled"
        found.version += 1
        found.moves += 1
        found.away = move_id
        assert answered["appointment"]["doctor_id"] == "wilson"
        assert answered["appointment"]["version"] == found.version

    def state_of(self, visit: NaiveVisit) -> AppointmentState:
        slot = self.naive.slot(visit.slot)
        assert slot is not None
        return AppointmentState(
            id=visit.id,
            patient_id=visit.patient,
            booked_by=uid("anna"),
            slot_id=visit.slot,
            location_id=slot.location,
            service_id=None,
            start=visit.start,
            end=visit.end,
            status=AppointmentStatus(visit.status),
            version=visit.version,
            moves=visit.moves,
            created_at=OPENS,
            updated_at=self.now,
        )

    def check_answer(self, answered: dict[str, Any], visit_id: str) -> None:
        visit = self.naive.visit(visit_id)
        assert visit is not None
        told = answered["appointment"]
        assert (told["id"], told["doctor_id"], told["slot_id"]) == (visit.id, "house", visit.slot)
        assert (told["patient_id"], told["start"], told["end"]) == (visit.patient, visit.start, visit.end)
        assert (told["status"], told["version"], told["moves"]) == (visit.status, visit.version, visit.moves)
        assert told["displaced"] is (visit_id in self.naive.displaced())

    # What must always hold

    @rule()
    def commit(self) -> None:
        """The rows collected since the last time bring the tables to the state there is now."""
        append = Append()
        collect_changes(self.calendar, append)
        self.tables.apply(append)
        assert self.tables.slots == {
            slot.id: (self.naive.status(slot, None), slot.by_hand, self.held_until(slot)) for slot in self.naive.slots
        }
        assert self.tables.holds == {hold.id: (hold.slot, hold.user, hold.until) for hold in self.naive.holds}
        displaced = self.naive.displaced()
        live = {visit.id for visit in self.naive.live()}
        for visit in self.naive.visits:
            visit.over = visit.away is None and visit.id not in live
        assert self.tables.appointments == {
            visit.id: (
                ("wilson", visit.away, visit.slot, visit.status, visit.version, True, False)
                if visit.away is not None
                else ("house", None, visit.slot, visit.status, visit.version, visit.id in live, visit.id in displaced)
            )
            for visit in self.naive.visits
        }
        assert self.tables.closures == {closure.id for closure in self.naive.closures if closure.removed is None}
        again = Append()
        collect_changes(self.calendar, again)
        assert again == Append(), "what has been collected is collected once"

    def held_until(self, slot: NaiveSlot) -> datetime | None:
        if self.naive.status(slot, None) != "held":
            return None
        return next((hold.until for hold in self.naive.holds if hold.slot == slot.id), None)

    @invariant()
    def reads_as_the_naive_one(self) -> None:
        for slot in self.naive.slots:
            mine = self.calendar.slots[slot.id]
            ended = mine.status == "held" and mine.move_id is None and mine.hold and mine.hold.expires_at <= self.now
            assert ("free" if ended else mine.status) == self.naive.status(slot, self.now)
            assert mine.status == self.naive.status(slot, None)
        assert set(self.calendar.slots) == {slot.id for slot in self.naive.slots}
        assert {h.id for h in self.calendar.holds.values()} == {hold.id for hold in self.naive.holds}
        here = [visit for visit in self.naive.visits if visit.away is None and not visit.over]
        assert {each.id: (each.status, each.version, each.moves) for each in self.calendar.appointments.values()} == {
            visit.id: (visit.status, visit.version, visit.moves) for visit in here
        }
        assert self.calendar.displaced == self.naive.displaced()
        assert {each.move_id: each.slot_id for each in self.calendar.reservations.values()} == {
            move_id: slot_id for move_id, slot_id, _ in self.naive.kept
        }

    @invariant()
    def nobody_is_in_two_places(self) -> None:
        live = [each for each in self.calendar.appointments.values() if each.status.live]
        to_come = [self.calendar.slots[each.slot_id] for each in self.calendar.reservations.values()]
        times = [(each.start, each.end) for each in live] + [(slot.start, slot.end) for slot in to_come]
        for index, time in enumerate(times):
            assert not overlaps(time, times[:index]), "the doctor is in two places"
        for patient in {each.patient_id for each in live}:
            times = [(each.start, each.end) for each in live if each.patient_id == patient]
            times += [(start, end) for who, start, end in self.naive.elsewhere if who == patient]
            for index, time in enumerate(times):
                assert not overlaps(time, times[:index]), "a patient is in two places"

    @invariant()
    def numbers_are_gapless(self) -> None:
        assert self.calendar.sequence == len(self.events)
        assert self.calendar.last_event_at == (self.events[-1][0] if self.events else None)

    @invariant()
    def bookkeeping_is_right(self) -> None:
        calendar = self.calendar
        visits = list(calendar.appointments.values())
        for patient in {each.patient_id for each in visits}:
            theirs = {each.id: each for each in visits if each.patient_id == patient}
            assert {each.id: each for each in calendar.appointments.of_patient(patient)} == theirs
        starts = [slot.start for slot in calendar.by_start]
        assert starts == sorted(starts)
        assert {slot.id for slot in calendar.by_start} == {s.id for s in calendar.slots.values() if not s.cancelled}
        for slot in calendar.slots.values():
            assert slot.hold is None or calendar.holds[slot.hold.id] is slot.hold
        assert all(calendar.slots[hold.slot_id].hold is hold for hold in calendar.holds.values())

    def teardown(self) -> None:
        """All events, told again to a new calendar, make the same state; so does what is left of the rows."""
        again = Calendar("house")
        for at, event in self.events:
            evolve(again, event, at)
        again.forget_changes()
        self.commit()
        assert state(again) == state(self.calendar)


class Tables:
    """The rows of one calendar, as the journal would keep them."""

    def __init__(self) -> None:
        self.slots: dict[str, tuple[str, bool, datetime | None]] = {}
        self.holds: dict[str, tuple[str, str, datetime]] = {}
        self.appointments: dict[str, tuple[object, ...]] = {}
        self.closures: set[str] = set()

    def apply(self, append: Append) -> None:
        """Insert what is new, update what is there, delete what is gone; a row that is not there is a bug."""
        for row in append.new_slots:
            assert row["id"] not in self.slots
            self.slots[row["id"]] = (row["status"], row["blocked"], row["held_until"])
        for row in append.slots:
            assert row["id"] in self.slots
            self.slots[row["id"]] = (row["status"], row["blocked"], row["held_until"])
        for hold_id in append.holds_gone:
            self.holds.pop(hold_id, None)
        for row in append.holds:
            assert row["id"] not in self.holds
            self.holds[row["id"]] = (row["slot_id"], row["user_id"], row["expires_at"])
        assert len({row["id"] for row in append.appointments}) == len(append.appointments), "one net row for each"
        for row in append.appointments:
            self.appointments[row["id"]] = (
                row["doctor_id"],
                row["open_move_id"],
                row["slot_id"],
                row["status"],
                row["version"],
                row["live"],
                row["displaced"],
            )
        for row in append.closures:
            assert row["id"] not in self.closures
            self.closures.add(row["id"])
        for row in append.closures_removed:
            self.closures.discard(row["id"])


CalendarMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestCalendar = CalendarMachine.TestCase


def test_a_visit_that_leaves_is_told_as_it_is_from_then_on() -> None:
    """The one event whose appointment belongs to another calendar already."""
    machine = CalendarMachine()
    machine.publish([(4, 2)], "l1")
    machine.book(0, uid("anna"), uid("p1"), 0, False, False)
    machine.move_out(0, 8, None, False)

    event = machine.events[-1][1]
    assert isinstance(event, AppointmentMovedOut)
    assert (event.appointment.version, event.appointment.moves) == (2, 1)
    machine.teardown()
