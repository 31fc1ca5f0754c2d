"""The calendar actor over the journal in memory: when it commits, what it replies and when, and how it recovers."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace

import pytest

from actors.errors import Rejection
from actors.journal import Append, Conflict, JournalUnavailable, OutcomeUnknown, StaleEpoch, StoredAnswer
from actors.messages import (
    AbortMove,
    CloseCalendar,
    Command,
    Done,
    ExpireHolds,
    NotDecided,
    Pending,
    RefusedFor,
    Rejected,
    RemoveClosure,
    Reply,
)
from actors.policy import Policy
from persistence.outbox import intents
from tests.clinic import (
    CUDDY,
    HOUSE,
    SEALED,
    WILSON,
    book,
    by_staff,
    cancel,
    close,
    finish,
    hold,
    move_out,
    moved,
    publish,
    release,
    reschedule,
    reserve,
    slot_id,
    visit_id,
)
from tests.fakes.actor_house import QUICK, House, settle, until
from tests.fakes.memory_journal import Fault, Gate, MemoryDatabase, MemoryJournal, lost
from tests.given import MINUTE, NOW, as_json, uid

NOT_ACTIVE = NotDecided(why=RefusedFor.NOT_ACTIVE)
UNAVAILABLE = NotDecided(why=RefusedFor.UNAVAILABLE)
OVERLOADED = NotDecided(why=RefusedFor.OVERLOADED)
MISPLACED = NotDecided(why=RefusedFor.MISPLACED)
SHORT = replace(QUICK, commit_timeout_s=0.02)
"""Callers are soon told pending."""


def codes(replies: list[Reply]) -> list[str]:
    """``done``, ``pending``, the code of a rejection, or why nothing was decided."""
    told = []
    for reply in replies:
        match reply:
            case Done():
                told.append("done")
            case Pending():
                told.append("pending")
            case Rejected():
                told.append(reply.code)
            case NotDecided():
                told.append(reply.why.value)
    return told


def appended(house: House) -> int:
    """How many transactions were tried."""
    return len(house.journal.appends)


# Batches and group commit


async def test_a_batch_is_one_transaction_whatever_the_calendars() -> None:
    house = await House().opened(HOUSE, WILSON)
    before = appended(house)

    replies = await house.send(
        book(HOUSE, 0), book(HOUSE, 1, patient="boris"), book(WILSON, 2), cancel(WILSON, uid("no such visit"))
    )

    assert codes(replies) == ["done", "done", "done", "not_live"]
    assert appended(house) == before + 1
    assert house.kinds(HOUSE) == ["SlotsPublished", "AppointmentBooked", "AppointmentBooked"]


async def test_what_comes_during_a_commit_travels_in_the_next() -> None:
    house = await House().opened(HOUSE)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))
    before = appended(house)
    first = house.sending(book(HOUSE, 0, patient="a"))
    await gate.entered.wait()
    later = [house.sending(book(HOUSE, number, patient=str(number))) for number in (1, 2, 3)]
    await settle()

    gate.open()

    assert [codes(replies) for replies in await asyncio.gather(first, *later)] == [["done"]] * 4
    assert appended(house) == before + 2
    assert [len(append.events) for append in house.journal.appends[-2:]] == [1, 3]


async def test_the_next_command_of_a_batch_sees_what_the_one_before_it_did() -> None:
    house = await House().opened(HOUSE)

    replies = await house.send(book(HOUSE, 0), book(HOUSE, 0, patient="boris", visit="second"))

    assert codes(replies) == ["done", "slot_taken"]


async def test_replies_come_in_the_order_of_their_commands() -> None:
    house = await House().opened(HOUSE, WILSON)

    commands = [book((HOUSE, WILSON)[number % 2], number, patient=str(number)) for number in range(4)]
    replies = await house.send(*commands)

    for command, reply in zip(commands, replies, strict=True):
        assert isinstance(reply, Done)
        assert reply.answer["appointment"]["id"] == command.appointment_id


async def test_sealed_texts_travel_beside_the_events() -> None:
    house = await House().opened(HOUSE)

    await house.send(
        book(HOUSE, 0, reason=SEALED),
        cancel(HOUSE, visit_id(HOUSE, 0), reason="Y2FuY2VsbGVk"),
        close(HOUSE, 3, 3, reason=SEALED),
        by_staff(ExpireHolds, doctor=HOUSE),
        publish(HOUSE, 1, first=9),
    )

    (append,) = house.journal.appends[-1:]
    (row,) = append.appointments
    assert (row["reason"], row["cancel_reason"]) == (SEALED, "Y2FuY2VsbGVk")
    assert append.closures[0]["reason"] == SEALED
    assert SEALED not in repr(append.events)
    assert [(each.action, each.subject) for each in append.audit] == [
        ("close_calendar", "closure"),
        ("publish_slots", "doctor"),
    ]


async def test_an_absence_from_nothing_is_no_trouble() -> None:
    house = await House().opened(HOUSE)

    replies = await house.send(by_staff(CloseCalendar, doctor=HOUSE, closure_id=uid("closure"), windows=()))

    assert codes(replies) == ["done"]
    assert house.bugs == 0


async def test_a_refused_command_brings_no_sealed_text() -> None:
    house = await House().opened(HOUSE)

    await house.send(book(HOUSE, 0), book(HOUSE, 0, patient="boris", reason=SEALED, visit="refused"))

    assert house.journal.appends[-1].appointments[0]["reason"] is None


# Nothing is told before it is so


async def test_nothing_is_acknowledged_before_it_is_committed() -> None:
    house = await House().opened(HOUSE)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))
    sending = house.sending(book(HOUSE, 0))
    await gate.entered.wait()
    await settle()
    assert not sending.done()
    assert house.visits() == {}

    gate.open()

    assert codes(await sending) == ["done"]
    assert house.visits() == {visit_id(HOUSE, 0): "booked"}


async def test_nothing_is_refused_before_the_epoch_is_checked() -> None:
    house = await House().opened(HOUSE)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))
    sending = asyncio.create_task(house.once(cancel(HOUSE, uid("no such visit"))))
    await gate.entered.wait()
    await settle()
    assert not sending.done()
    await house.rival().send(publish(HOUSE, 1, first=9))

    gate.open()

    assert await sending == [NOT_ACTIVE], "a stale activation cannot even say no"


async def test_a_refusal_leaves_nothing_to_the_garbage_collector() -> None:
    """Thousands of them would: then it stops the actor for a tenth of a second."""
    house = await House().opened(HOUSE)
    await house.send(book(HOUSE, 0, patient="boris"))
    gc.collect()
    gc.disable()
    try:
        replies = await house.send(*(book(HOUSE, 0, visit=str(number)) for number in range(50)))
        assert codes(replies) == ["slot_taken"] * 50
        assert not [each for each in gc.get_objects() if isinstance(each, Rejection)]
    finally:
        gc.enable()


async def test_a_refusal_never_reveals_what_is_undone_after_it() -> None:
    """Boris is refused because of a visit that Anna is about to lose: he has to be asked again, not told."""
    house = await House().opened(HOUSE)
    await house.rival().opened(WILSON)
    await house.rival().send(book(WILSON, 0))
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))
    anna = house.sending(book(HOUSE, 0))
    await gate.entered.wait()
    boris = house.sending(book(HOUSE, 0, patient="boris", visit="of boris"))
    await settle()

    gate.open()

    assert codes(await anna) == ["patient_overlap"]
    assert codes(await boris) == ["done"]


async def test_calendars_that_are_committed_apart_do_not_count_on_each_other() -> None:
    """After repeated trouble House is committed alone, and lost: Wilson may not have refused because of it."""
    house = await House().opened(HOUSE, WILSON)
    trouble = [Fault(before=Conflict("somewhere"))] * 3
    house.journal.next("append", *trouble, Fault(before=StaleEpoch([HOUSE])))

    first, second = await house.once(book(HOUSE, 0), book(WILSON, 0))

    assert [row.doctor_id for row in house.journal.appends[-2].calendars] == [HOUSE]
    assert first == NOT_ACTIVE
    assert codes([second]) == ["done"]


# Stale


async def test_a_calendar_claimed_by_another_is_dropped_and_activated_anew_only_when_asked() -> None:
    house = await House().opened(HOUSE, WILSON)
    await house.rival().send(book(HOUSE, 0))
    claims = len(house.journal.claims)

    replies = await house.once(book(HOUSE, 1, patient="boris"), book(WILSON, 2))

    assert codes(replies) == ["not_active", "done"]
    assert house.actor.status()["active_calendars"] == 1
    assert house.actor.status()["backlog"] == 0
    await settle()
    assert len(house.journal.claims) == claims
    assert codes(await house.send(book(HOUSE, 1, patient="boris"))) == ["done"]
    assert len(house.journal.claims) == claims + 1
    assert house.kinds(HOUSE) == ["SlotsPublished", "AppointmentBooked", "AppointmentBooked"]


async def test_what_waits_behind_a_stale_batch_is_sent_back_too() -> None:
    house = await House().opened(HOUSE)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))
    first = asyncio.create_task(house.once(book(HOUSE, 0)))
    await gate.entered.wait()
    second = asyncio.create_task(house.once(book(HOUSE, 1, patient="boris")))
    await settle()
    await house.rival().send(publish(HOUSE, 1, first=9))

    gate.open()

    assert await first == await second == [NOT_ACTIVE]
    assert house.actor.status()["backlog"] == 0
    assert codes(await house.send(book(HOUSE, 0), book(HOUSE, 1, patient="boris"))) == ["done", "done"]


# Conflicts


async def test_a_conflict_is_decided_again_with_the_facts_found() -> None:
    house = await House().opened(HOUSE)
    rival = await house.rival().opened(WILSON)
    await rival.send(book(WILSON, 0))

    replies = await house.send(book(HOUSE, 1), book(HOUSE, 0, visit="overlapping"), book(HOUSE, 2, patient="boris"))

    assert codes(replies) == ["done", "patient_overlap", "done"]
    assert house.kinds(HOUSE) == ["SlotsPublished", "AppointmentBooked", "AppointmentBooked"]


async def test_of_two_in_one_batch_that_conflict_the_first_wins() -> None:
    house = await House().opened(HOUSE, WILSON, CUDDY)

    replies = await house.send(book(WILSON, 0), book(HOUSE, 0), book(CUDDY, 0), book(CUDDY, 1))

    assert codes(replies) == ["done", "patient_overlap", "patient_overlap", "done"]


async def test_limits_across_calendars_count_in_order() -> None:
    house = await House(
        database=MemoryDatabase(live_appointments_max=2, holds_max=1),
        policy=Policy(live_appointments_max=2, holds_max=1),
    ).opened(HOUSE, WILSON, CUDDY)

    replies = await house.send(
        book(HOUSE, 0), book(WILSON, 1), book(CUDDY, 2), hold(HOUSE, 3), hold(WILSON, 3), book(CUDDY, 3, patient="b")
    )

    assert codes(replies) == ["done", "done", "limit_reached", "done", "limit_reached", "done"]


async def test_what_was_decided_meanwhile_is_decided_again_too() -> None:
    house = await House().opened(HOUSE)
    rival = await house.rival().opened(WILSON)
    await rival.send(book(WILSON, 0))
    gate = Gate()
    house.journal.next("facts", Fault(gate=gate))
    anna = house.sending(book(HOUSE, 0))
    await gate.entered.wait()
    refused_then = house.sending(book(HOUSE, 0, patient="boris", visit="of boris"))
    await settle()

    gate.open()

    assert codes(await anna) == ["patient_overlap"]
    assert codes(await refused_then) == ["done"]
    assert house.kinds(HOUSE) == ["SlotsPublished", "AppointmentBooked"]


async def test_facts_older_than_a_command_decide_nothing_about_it() -> None:
    """Anna cancels at Wilson's, is told so, and asks for that time at House's, who is looking at how it was before."""
    house = await House().opened(HOUSE)
    rival = await house.rival().opened(WILSON)
    await rival.send(book(WILSON, 0))
    gate = Gate()
    house.journal.next("append", Fault(before=Conflict("once")))
    house.journal.next("facts", Fault(gate_after=gate))
    first = house.sending(book(HOUSE, 0, visit="too early"))
    await gate.entered.wait()
    assert codes(await rival.send(cancel(WILSON, visit_id(WILSON, 0)))) == ["done"]
    second = house.sending(book(HOUSE, 1, patient="boris"), book(HOUSE, 0))
    await settle()

    gate.open()

    assert codes(await first) == ["patient_overlap"], "it was so when this one was asked"
    assert codes(await second) == ["done", "done"]


async def test_a_conflict_without_end_is_given_up() -> None:
    house = await House(limits=replace(QUICK, redecide_max=3)).opened(HOUSE)
    house.journal.always("append", Fault(before=Conflict("for ever")))
    before = appended(house)

    assert await house.once(book(HOUSE, 0)) == [UNAVAILABLE]

    assert appended(house) == before + 4
    house.journal.back()
    assert codes(await house.send(book(HOUSE, 0))) == ["done"]
    assert house.kinds(HOUSE) == ["SlotsPublished", "AppointmentBooked"]


class PoisonedJournal(MemoryJournal):
    """Refuses whatever one patient's booking is part of."""

    def _append(self, append: Append) -> dict[str, StoredAnswer]:
        if uid("poison") in append.patients:
            raise Conflict("poison")
        return super()._append(append)


async def test_one_calendar_in_trouble_does_not_drag_the_others_along() -> None:
    house = await House().opened(HOUSE, WILSON, CUDDY)
    house.actor._journal = PoisonedJournal(house.database)

    replies = await house.once(
        book(HOUSE, 0), book(WILSON, 1, patient="poison"), book(CUDDY, 2), book(HOUSE, 3, patient="boris")
    )

    assert codes(replies) == ["done", "unavailable", "done", "done"]
    assert house.actor.status()["backlog"] == 0


async def test_two_drivers_of_one_move_in_one_batch_are_told_apart() -> None:
    house = await House().opened(HOUSE, WILSON)
    await house.send(book(HOUSE, 0))
    await house.send(reserve(HOUSE, WILSON, 1, visit_id(HOUSE, 0)))

    replies = await house.send(
        move_out(HOUSE, WILSON, 1, visit_id(HOUSE, 0)),
        by_staff(AbortMove, doctor=HOUSE, move_id=uid("move"), target_doctor_id=WILSON),
    )

    assert codes(replies) == ["done", "done"]
    assert house.database.tables.move[uid("move")]["state"] == "moved"


@pytest.mark.parametrize("told_pending", [True, False])
async def test_a_refused_move_is_remembered_where_it_was_pending(told_pending: bool) -> None:
    """Who refuses it once more, after another has, has nothing to tell."""
    house = await House().opened(HOUSE, WILSON)
    visit = visit_id(HOUSE, 0)
    await house.send(book(HOUSE, 0), book(HOUSE, 1))
    await house.send(reserve(HOUSE, WILSON, 1, visit))

    command = move_out(HOUSE, WILSON, 1, visit, told_pending=told_pending)
    assert codes(await house.send(command)) == ["patient_overlap"]
    late = replace(command, told_pending=True, command_id=uid("late"))
    assert codes(await house.send(late)) == ["slot_taken"]

    stored = house.database.tables.command.get(command.command_id)
    assert (stored.answer["rejected"]["code"] if stored else None) == ("patient_overlap" if told_pending else None)
    assert late.command_id not in house.database.tables.command


async def test_that_a_visit_is_not_in_a_calendar_is_no_last_word_about_its_move() -> None:
    house = await House().opened(HOUSE, WILSON)
    visit = visit_id(HOUSE, 0)
    await house.send(book(HOUSE, 0))
    await house.send(reserve(HOUSE, WILSON, 1, visit))
    await house.send(cancel(HOUSE, visit))

    command = move_out(HOUSE, WILSON, 1, visit, told_pending=True)
    assert codes(await house.send(command)) == ["not_live"]

    assert command.command_id not in house.database.tables.command


async def test_a_refusal_that_waits_for_its_commit_is_remembered_once_its_caller_is_known_to_be_gone() -> None:
    """Whoever drives the move on joins what is there, and nobody else would say it."""
    house = await House(limits=SHORT).opened(HOUSE, WILSON)
    visit = visit_id(HOUSE, 0)
    await house.send(book(HOUSE, 0), book(HOUSE, 1))
    await house.send(reserve(HOUSE, WILSON, 1, visit))
    house.journal.away()
    command = move_out(HOUSE, WILSON, 1, visit)
    assert codes(await house.once(command)) == ["unavailable"]
    house.journal.next("append", Fault(before=Conflict("once")))
    assert codes(await house.once(replace(command, told_pending=True))) == ["unavailable"]
    house.journal.back()

    await until(lambda: house.actor.status()["backlog"] == 0)

    assert house.database.tables.command[command.command_id].answer["rejected"]["code"] == "patient_overlap"


async def test_whoever_looked_at_a_move_before_it_was_tried_again_releases_nothing() -> None:
    """The supervisor read ``aborted``; meanwhile the slot was released, and kept anew for the next attempt."""
    house = await House().opened(HOUSE, WILSON)
    await house.send(reserve(HOUSE, WILSON, 1, visit_id(HOUSE, 0)))

    replies = await house.send(finish(WILSON), book(WILSON, 3, patient="boris"))

    assert codes(replies) == ["done", "done"]
    assert house.database.tables.move[uid("move")]["state"] == "reserved"
    assert uid("move") in (await house.journal.load(WILSON, NOW)).reservations


async def test_a_visit_of_somebody_erased_goes_nowhere_and_nothing_waits_for_it() -> None:
    house = await House().opened(HOUSE, WILSON)
    visit = visit_id(HOUSE, 0)
    await house.send(book(HOUSE, 0), reserve(HOUSE, WILSON, 1, visit))
    house.database.erased.add(uid("anna"))

    replies = await house.send(reschedule(HOUSE, visit, 2), move_out(HOUSE, WILSON, 1, visit))

    assert codes(replies) == ["not_found"] * 2
    assert house.database.tables.move[uid("move")]["state"] == "aborted"


async def test_a_visit_that_comes_into_a_slot_closed_meanwhile_is_displaced_and_that_is_told() -> None:
    house = await House().opened(HOUSE, WILSON)
    await house.send(book(HOUSE, 0), reserve(HOUSE, WILSON, 1, visit_id(HOUSE, 0)))
    await house.send(move_out(HOUSE, WILSON, 1, visit_id(HOUSE, 0)), close(WILSON, 1, 1))
    left = moved(house.journal.appends[-1].events[0].event)

    await house.send(finish(WILSON, appointment=left))

    row = house.database.tables.appointment[visit_id(HOUSE, 0)]
    assert (row["displaced"], row["version"]) == (True, left.version + 1)
    (came,) = (row.event for row in house.journal.appends[-1].events)
    assert list(intents(came)) == [("displaced", visit_id(HOUSE, 0), left.version + 1)]


async def test_a_long_backlog_is_committed_in_parts_that_part_no_calendar() -> None:
    house = await House(limits=replace(QUICK, append_commands_max=3)).opened(HOUSE, WILSON, CUDDY)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))
    first = house.sending(book(HOUSE, 3, patient="clara"))
    await gate.entered.wait()
    later = house.sending(
        *(
            book(doctor, number, patient=f"{doctor} {number}")
            for number in range(2)
            for doctor in (HOUSE, WILSON, CUDDY)
        )
    )
    await settle()
    gate.open()

    assert codes([*await first, *await later]) == ["done"] * 7
    sizes = [(len(append.commands), len(append.calendars)) for append in house.journal.appends]
    assert sizes[-4:] == [(1, 1), (2, 1), (2, 1), (2, 1)]


async def test_a_visit_moved_within_its_calendar_and_out_of_it_in_one_batch() -> None:
    house = await House().opened(HOUSE, WILSON)
    await house.send(book(HOUSE, 0))
    await house.send(reserve(HOUSE, WILSON, 1, visit_id(HOUSE, 0)))

    replies = await house.send(reschedule(HOUSE, visit_id(HOUSE, 0), 3), move_out(HOUSE, WILSON, 1, visit_id(HOUSE, 0)))

    assert codes(replies) == ["done", "done"]
    assert house.database.tables.appointment[visit_id(HOUSE, 0)]["doctor_id"] == WILSON


# Unknown outcomes


@pytest.mark.parametrize("committed", [True, False])
async def test_an_unknown_outcome_is_found_out(committed: bool) -> None:
    house = await House().opened(HOUSE)
    house.journal.next("append", lost(committed=committed))
    before = house.database.tables.calendar[HOUSE].epoch

    done, refused = await house.once(book(HOUSE, 0), cancel(HOUSE, uid("no such visit")))

    assert isinstance(done, Done)
    assert as_json(done.answer)["appointment"]["id"] == visit_id(HOUSE, 0)
    assert codes([refused]) == ["not_live"]
    assert house.database.tables.calendar[HOUSE].epoch == before + 1
    assert house.kinds(HOUSE) == ["SlotsPublished", "AppointmentBooked"]
    assert house.visits() == {visit_id(HOUSE, 0): "booked"}


@pytest.mark.parametrize("committed", [True, False])
async def test_what_waits_behind_an_unknown_outcome_is_decided_on_what_was_found(committed: bool) -> None:
    house = await House().opened(HOUSE)
    gate = Gate()
    house.journal.next("append", replace(lost(committed=committed), gate=gate))
    first = house.sending(book(HOUSE, 0))
    await gate.entered.wait()
    second = house.sending(book(HOUSE, 0, patient="boris", visit="of boris"), book(HOUSE, 1, patient="clara"))
    await settle()

    gate.open()

    assert codes(await first) == ["done"]
    assert codes(await second) == ["slot_taken", "done"]
    assert house.kinds(HOUSE) == ["SlotsPublished", "AppointmentBooked", "AppointmentBooked"]


async def test_finding_out_outlasts_a_database_that_is_away() -> None:
    house = await House(limits=SHORT).opened(HOUSE)
    house.journal.next("append", lost(committed=True))
    house.journal.away("claim", "load", "look_up", "facts")

    assert codes(await house.once(book(HOUSE, 0))) == ["pending"]
    house.journal.back()

    await until(lambda: house.actor.status()["backlog"] == 0)
    assert codes(await house.send(book(HOUSE, 0, command_id=_last_command(house)))) == ["done"]
    assert house.kinds(HOUSE) == ["SlotsPublished", "AppointmentBooked"]


def _last_command(house: House) -> str:
    return house.journal.appends[-1].commands[-1].command_id


async def test_after_an_unknown_outcome_is_settled_callers_wait_for_their_commits_again() -> None:
    house = await House().opened(HOUSE)
    house.journal.next("append", lost(committed=True))
    await house.once(book(HOUSE, 0))
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))

    sending = house.sending(book(HOUSE, 1, patient="boris"))
    await gate.entered.wait()
    await settle()

    assert not sending.done(), "nothing is overdue any more"
    gate.open()
    assert codes(await sending) == ["done"]


async def test_an_unknown_outcome_under_a_newer_placement_is_somebody_elses() -> None:
    house = await House().opened(HOUSE)
    house.journal.next("append", lost(committed=True))
    house.database.place(5)

    command = book(HOUSE, 0)
    assert await house.once(command) == [NOT_ACTIVE]
    assert await house.once(command) == [MISPLACED]

    heir = house.rival()
    (reply,) = await heir.send(command, generation=5)
    assert isinstance(reply, Done), "a repeat gets its answer from whoever owns the calendar now"


# Idempotency


async def test_a_command_sent_twenty_times_at_once_has_one_effect_and_twenty_equal_answers() -> None:
    house = await House().opened(HOUSE)
    command = book(HOUSE, 0)

    batches = await asyncio.gather(*(house.send(command, command) for _ in range(10)))

    replies = [reply for batch in batches for reply in batch]
    assert len(replies) == 20
    assert all(isinstance(reply, Done) and reply == replies[0] for reply in replies)
    assert house.kinds(HOUSE) == ["SlotsPublished", "AppointmentBooked"]


def repeated(visit: str) -> dict[str, Command]:
    """Commands of every kind that has an effect to be repeated."""
    return {
        "book": book(HOUSE, 0),
        "hold": hold(HOUSE, 1),
        "release": release(HOUSE, 2, by="boris"),
        "reschedule": reschedule(HOUSE, visit, 3, by="boris"),
        "cancel": cancel(HOUSE, uid("visit to cancel"), by="boris"),
        "publish": publish(HOUSE, 1, first=20),
        "close": close(HOUSE, 20, 21),
        "reopen": by_staff(RemoveClosure, doctor=HOUSE, closure_id=uid("closure to remove")),
    }


@pytest.mark.parametrize("kind", sorted(repeated("")))
@pytest.mark.parametrize("meanwhile", [False, True], ids=["at once", "after it was undone"])
async def test_a_repeat_gets_the_first_answer_whatever_it_would_be_decided_now(kind: str, meanwhile: bool) -> None:
    house = await House().opened(HOUSE, slots=12)
    await house.send(
        hold(HOUSE, 2, by="boris"),
        book(HOUSE, 4, patient="boris", visit="visit to move"),
        book(HOUSE, 5, patient="boris", visit="visit to cancel"),
        close(HOUSE, 10, 10, name="closure to remove"),
    )
    command = repeated(uid("visit to move"))[kind]
    (first,) = await house.send(command)
    assert isinstance(first, Done), first
    if meanwhile:
        await house.send(
            cancel(HOUSE, visit_id(HOUSE, 0)),
            release(HOUSE, 1),
            hold(HOUSE, 2, by="boris"),
            reschedule(HOUSE, uid("visit to move"), 6, by="boris"),
        )
    before = house.kinds(HOUSE)

    (again,) = await house.send(command)

    assert as_json(again) == as_json(first)
    assert house.kinds(HOUSE) == before


async def test_a_key_used_for_something_else_is_refused_in_flight_and_after() -> None:
    house = await House().opened(HOUSE)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))
    key = uid("key")
    first = house.sending(book(HOUSE, 0, command_id=key, fingerprint="one"))
    await gate.entered.wait()
    other = house.sending(book(HOUSE, 1, command_id=key, fingerprint="another"))
    await settle()
    assert not other.done()

    gate.open()

    assert codes(await first) == ["done"]
    assert codes(await other) == ["idempotency_key_reused"]
    stranger = book(HOUSE, 0, command_id=key, fingerprint="one", by=uid("stranger"))
    assert codes(await house.send(stranger)) == ["idempotency_key_reused"]
    taken = cancel(HOUSE, uid("no such visit"), command_id=key, fingerprint="another")
    assert codes(await house.send(taken)) == ["idempotency_key_reused"]


async def test_a_key_means_the_same_in_every_calendar() -> None:
    house = await House().opened(HOUSE, WILSON)
    command = book(HOUSE, 0, command_id=uid("key"))
    (first,) = await house.send(command)

    (again,) = await house.send(replace(command, doctor_id=WILSON, slot_id=slot_id(WILSON, 1)))

    assert as_json(again) == as_json(first)
    assert house.kinds(WILSON) == ["SlotsPublished"]


async def test_a_refusal_is_decided_anew_and_so_is_a_dry_run() -> None:
    house = await House().opened(HOUSE)
    await house.send(book(HOUSE, 0, patient="boris"))
    refused = book(HOUSE, 0)
    assert codes(await house.send(refused)) == ["slot_taken"]
    dry = close(HOUSE, 0, 0, dry_run=True)
    (first,) = await house.send(dry)
    await house.send(cancel(HOUSE, visit_id(HOUSE, 0), by="boris"))

    assert codes(await house.send(refused)) == ["done"]
    (again,) = await house.send(dry)

    assert isinstance(first, Done)
    assert isinstance(again, Done)
    assert first.answer["displaced"][0]["patient_id"] == uid("boris")
    assert again.answer["displaced"][0]["patient_id"] == uid("anna")
    assert dry.command_id not in house.database.tables.command


async def test_a_key_that_was_used_is_not_for_a_dry_run() -> None:
    house = await House().opened(HOUSE)
    closed = close(HOUSE, 0, 0)
    await house.send(closed)

    dry = replace(closed, dry_run=True, fingerprint="another body")
    assert codes(await house.send(dry)) == ["idempotency_key_reused"]


# Pending


async def test_a_commit_that_is_overdue_is_pending_and_a_no_that_cannot_be_checked_is_no_answer() -> None:
    house = await House(limits=SHORT).opened(HOUSE)
    house.journal.away()

    command = book(HOUSE, 0)
    replies = await house.once(command, book(HOUSE, 0, patient="boris", visit="of boris"))

    assert replies == [Pending(command_id=command.command_id), UNAVAILABLE]
    assert house.visits() == {}


async def test_once_a_commit_is_overdue_nobody_waits() -> None:
    house = await House(limits=SHORT).opened(HOUSE)
    house.journal.away()
    await house.once(book(HOUSE, 0))
    house.actor._limits = replace(QUICK, commit_timeout_s=3600)

    async with asyncio.timeout(5):
        replies = await house.once(book(HOUSE, 1, patient="boris"), book(HOUSE, 0, patient="clara", visit="refused"))

    assert codes(replies) == ["pending", "unavailable"]


async def test_refusals_that_cannot_be_checked_are_overdue_too() -> None:
    house = await House(limits=SHORT).opened(HOUSE)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))

    assert await house.once(cancel(HOUSE, uid("no such visit"))) == [UNAVAILABLE]
    assert house.actor.status()["stalled"]
    gate.open()
    await until(lambda: house.actor.status()["backlog"] == 0)
    assert not house.actor.status()["stalled"]


async def test_when_the_database_is_back_the_backlog_is_committed_in_order() -> None:
    house = await House(limits=SHORT).opened(HOUSE)
    house.journal.away()
    commands = [book(HOUSE, number, patient=str(number)) for number in range(4)]
    for command in commands:
        await house.once(command)
    assert house.actor.status()["backlog"] == 4
    assert house.actor.status()["stalled"]

    house.journal.back()

    await until(lambda: house.actor.status()["backlog"] == 0)
    assert len(house.visits()) == 4
    assert not house.actor.status()["stalled"]
    assert codes(await house.send(*commands)) == ["done"] * 4
    assert len(house.kinds(HOUSE)) == 5


async def test_a_repeat_while_pending_is_pending_and_gets_its_answer_once_it_is_committed() -> None:
    house = await House(limits=SHORT).opened(HOUSE)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))
    command = book(HOUSE, 0)
    assert codes(await house.once(command)) == ["pending"]
    assert codes(await house.once(command)) == ["pending"]
    assert house.actor.status()["backlog"] == 1

    gate.open()
    await until(lambda: house.actor.status()["backlog"] == 0)

    assert codes(await house.send(command)) == ["done"]
    assert house.kinds(HOUSE) == ["SlotsPublished", "AppointmentBooked"]


async def test_pending_can_be_asked_about_by_whom_it_belongs_to() -> None:
    house = await House(limits=SHORT).opened(HOUSE)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))
    command, refused = book(HOUSE, 0), cancel(HOUSE, uid("no such visit"))
    await house.once(command, refused)

    assert house.actor.command_status(command.command_id, uid("anna")) == Pending(command_id=command.command_id)
    assert house.actor.command_status(command.command_id, uid("boris")) is None
    assert house.actor.command_status(refused.command_id, uid("anna")) is None
    assert house.actor.command_status(uid("unheard of"), uid("anna")) is None
    gate.open()
    await until(lambda: house.actor.status()["backlog"] == 0)
    assert house.actor.command_status(command.command_id, uid("anna")) is None


async def test_a_pending_command_that_is_then_refused_is_pending_until_that_is_written_down() -> None:
    house = await House(limits=SHORT).opened(HOUSE)
    await house.rival().opened(WILSON)
    await house.rival().send(book(WILSON, 0))
    command = book(HOUSE, 0, respond_async=True)
    assert codes(await house.once(command)) == ["pending"]
    gate = Gate()
    # The first attempt conflicts; the refusal it is decided to then is held up on its way into the journal.
    house.journal.next("append", Fault(), Fault(gate=gate))
    await gate.entered.wait()

    assert house.actor.command_status(command.command_id, uid("anna")) == Pending(command_id=command.command_id)
    gate.open()
    await until(lambda: house.actor.status()["backlog"] == 0)

    stored = house.database.tables.command[command.command_id]
    assert stored.answer["rejected"]["code"] == "patient_overlap"
    await house.rival().send(cancel(WILSON, visit_id(WILSON, 0)))
    repeat = replace(command, respond_async=False)
    assert codes(await house.send(repeat)) == ["patient_overlap"], "it was told, so it stays"


async def test_who_does_not_wait_is_told_pending_though_it_was_decided_again_while_others_waited() -> None:
    house = await House(limits=SHORT).opened(HOUSE, WILSON)
    await house.rival().send(book(WILSON, 0))
    gate = Gate()
    house.journal.next("append", Fault(), Fault(gate=gate))
    # Anna is at Wilson's then, as the first transaction finds; the second one is overdue.
    command = book(HOUSE, 0, respond_async=True)

    replies = await house.once(command, book(HOUSE, 1, patient="boris"))

    assert codes(replies) == ["pending", "pending"]
    gate.open()
    await until(lambda: house.actor.status()["backlog"] == 0)
    assert house.database.tables.command[command.command_id].answer["rejected"]["code"] == "patient_overlap"


async def test_who_does_not_want_to_wait_does_not() -> None:
    house = await House().opened(HOUSE)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))

    replies = await house.once(book(HOUSE, 0, respond_async=True))

    assert codes(replies) == ["pending"]
    assert not house.actor.status()["stalled"]
    gate.open()
    await until(lambda: house.visits() != {})


async def test_who_does_not_want_to_wait_still_gets_a_no_that_was_checked() -> None:
    house = await House().opened(HOUSE)

    assert codes(await house.send(cancel(HOUSE, uid("no such visit"), respond_async=True))) == ["not_live"]


async def test_the_backlog_is_bounded_but_a_repeat_joins_it() -> None:
    house = await House(limits=replace(SHORT, journal_backlog_max=2)).opened(HOUSE)
    house.journal.away()
    commands = [book(HOUSE, number, patient=str(number)) for number in range(3)]

    assert codes(await house.once(*commands)) == ["pending", "pending", "overloaded"]
    assert codes(await house.once(*commands)) == ["pending", "pending", "overloaded"]

    house.journal.back()
    await until(lambda: house.actor.status()["backlog"] == 0)
    assert codes(await house.send(commands[2])) == ["done"]


# Activation


async def test_a_batch_never_waits_for_an_activation() -> None:
    house = await House().opened(HOUSE)
    house.database.add_doctor(WILSON)
    gate = Gate()
    house.journal.next("claim", Fault(gate=gate))

    assert await house.once(publish(WILSON, 2)) == [NOT_ACTIVE]
    await gate.entered.wait()
    assert codes(await house.once(publish(WILSON, 2), book(HOUSE, 0))) == ["not_active", "done"]
    assert house.journal.claims.count(WILSON) == 1, "one attempt at a time"

    gate.open()
    assert codes(await house.send(publish(WILSON, 2))) == ["done"]


async def test_a_doctor_that_is_not_there_is_not_found_and_asked_for_again_later() -> None:
    house = House()

    assert codes(await house.send(book(HOUSE, 0))) == ["not_found"]
    assert codes(await house.once(book(HOUSE, 0))) == ["not_found"]
    assert len(house.journal.claims) == 1
    house.database.add_doctor(HOUSE)
    house.clock.pass_(seconds=1)
    assert codes(await house.send(publish(HOUSE, 1))) == ["done"]


async def test_an_activation_that_fails_is_not_tried_again_at_once() -> None:
    house = House()
    house.database.add_doctor(HOUSE)
    house.journal.away()

    assert await house.once(publish(HOUSE, 1)) == [NOT_ACTIVE]
    await settle()
    assert await house.once(publish(HOUSE, 1)) == [NOT_ACTIVE]
    assert len(house.journal.claims) == 1
    house.clock.pass_(seconds=1)
    assert await house.once(publish(HOUSE, 1)) == [NOT_ACTIVE]
    await settle()
    assert len(house.journal.claims) == 2

    house.journal.back()
    house.clock.pass_(seconds=1)
    assert codes(await house.send(publish(HOUSE, 1))) == ["done"]


async def test_an_activation_that_failed_is_tried_again_when_the_clock_has_stepped_back() -> None:
    house = House()
    house.database.add_doctor(HOUSE)
    house.journal.next("claim", Fault(before=JournalUnavailable("away")))
    house.clock.pass_(hours=1)

    assert await house.once(publish(HOUSE, 1)) == [NOT_ACTIVE]
    await settle()
    house.clock.pass_(hours=-1)
    assert codes(await house.send(publish(HOUSE, 1))) == ["done"]


async def test_a_load_that_fails_is_no_activation() -> None:
    house = House()
    house.database.add_doctor(HOUSE)
    house.journal.next("load", Fault(before=JournalUnavailable("away")))

    assert await house.once(publish(HOUSE, 1)) == [NOT_ACTIVE]
    await settle()
    assert house.actor.status()["active_calendars"] == 0
    house.clock.pass_(seconds=1)
    assert codes(await house.send(publish(HOUSE, 1))) == ["done"]
    assert house.database.tables.calendar[HOUSE].epoch == 2


async def test_whoever_knows_the_newer_placement_is_right() -> None:
    house = await House().opened(HOUSE)

    assert codes(await house.send(book(HOUSE, 0), generation=3)) == ["done"]
    assert await house.once(book(HOUSE, 1, patient="boris"), generation=2) == [MISPLACED]
    assert house.actor.status()["generation"] == 3


async def test_an_actor_learns_of_a_newer_placement_when_it_claims() -> None:
    house = House()
    house.database.add_doctor(HOUSE)
    house.database.place(4)

    assert await house.once(publish(HOUSE, 1), generation=3) == [NOT_ACTIVE]
    await settle()
    assert await house.once(publish(HOUSE, 1), generation=3) == [MISPLACED]
    assert codes(await house.send(publish(HOUSE, 1), generation=4)) == ["done"]


async def test_room_is_made_for_a_calendar_by_the_one_unused_for_longest() -> None:
    house = House(limits=replace(QUICK, active_calendars_max=2))
    for doctor in (HOUSE, WILSON, CUDDY):
        house.database.add_doctor(doctor)
    await house.send(publish(HOUSE, 4))
    house.clock.pass_(seconds=1)
    await house.send(publish(WILSON, 4))
    house.clock.pass_(seconds=1)
    await house.send(book(HOUSE, 0))
    house.clock.pass_(seconds=1)

    assert codes(await house.send(publish(CUDDY, 4))) == ["done"]

    assert codes(await house.once(book(HOUSE, 1, patient="boris"), book(WILSON, 2))) == ["done", "not_active"]


async def test_no_room_is_made_by_one_that_has_something_to_commit() -> None:
    house = await House(limits=replace(SHORT, active_calendars_max=1)).opened(HOUSE)
    house.database.add_doctor(WILSON)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))
    await house.once(book(HOUSE, 0))

    assert await house.once(publish(WILSON, 1)) == [OVERLOADED]

    gate.open()
    await until(lambda: house.actor.status()["backlog"] == 0)
    assert codes(await house.send(publish(WILSON, 1))) == ["done"]


# Moves found at activation


async def moved_so_far(house: House, *, let_go: bool) -> None:
    """A move from House to Wilson whose driver is gone after the source has spoken."""
    await house.send(book(HOUSE, 0))
    await house.send(reserve(HOUSE, WILSON, 2, visit_id(HOUSE, 0)))
    if not let_go:
        await house.send(cancel(HOUSE, visit_id(HOUSE, 0)))
    (reply,) = await house.send(move_out(HOUSE, WILSON, 2, visit_id(HOUSE, 0)))
    assert isinstance(reply, Done) is let_go


@pytest.mark.parametrize("let_go", [True, False])
async def test_a_calendar_that_is_activated_finishes_its_moves_first(let_go: bool) -> None:
    house = await House().opened(HOUSE, WILSON)
    await moved_so_far(house, let_go=let_go)

    heir = house.rival()
    replies = await heir.send(book(WILSON, 2, patient="boris"), book(WILSON, 3))

    assert codes(replies) == ["slot_taken" if let_go else "done", "done"]
    await until(lambda: heir.actor.status()["backlog"] == 0)
    assert house.database.tables.move[uid("move")]["state"] == ("done" if let_go else "released")
    assert house.kinds(WILSON)[2] == ("AppointmentMovedIn" if let_go else "ReservationReleased")


async def test_a_move_found_while_deciding_again_is_finished_before_anything_else() -> None:
    """The visit is Wilson's already, but not in Wilson's memory: only the database sees that the patient is busy."""
    house = await House(
        policy=Policy(live_appointments_max=1), database=MemoryDatabase(live_appointments_max=1)
    ).opened(HOUSE, WILSON)
    await moved_so_far(house, let_go=True)

    replies = await house.send(book(WILSON, 0), book(WILSON, 1, patient="boris"))

    assert codes(replies) == ["limit_reached", "done"]
    assert house.kinds(WILSON)[2:] == ["AppointmentMovedIn", "AppointmentBooked"]


async def test_the_driver_and_the_activation_may_both_finish_a_move() -> None:
    house = await House().opened(HOUSE, WILSON)
    await moved_so_far(house, let_go=True)
    heir = house.rival()

    assert codes(await heir.send(finish(WILSON), finish(WILSON))) == ["done", "done"]

    await until(lambda: heir.actor.status()["backlog"] == 0)
    assert house.kinds(WILSON)[2:] == ["AppointmentMovedIn"]


# Passivation


async def test_an_idle_calendar_is_let_go_but_never_with_something_to_commit() -> None:
    house = await House(limits=replace(SHORT, calendar_idle_s=0.02)).opened(HOUSE, WILSON)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))
    await house.once(book(HOUSE, 0))
    house.clock.pass_(minutes=1)

    await until(lambda: house.actor.status()["active_calendars"] == 1)
    assert codes(await house.once(book(HOUSE, 0, patient="boris", visit="other"), book(WILSON, 0))) == [
        "unavailable",
        "not_active",
    ]
    gate.open()
    await until(lambda: house.actor.status()["backlog"] == 0)
    await until(lambda: house.actor.status()["active_calendars"] == 2)
    house.clock.pass_(minutes=1)

    await until(lambda: house.actor.status()["active_calendars"] == 0)


async def test_counts_of_the_uncommitted_come_back_to_nought_whatever_happened() -> None:
    house = await House(limits=replace(QUICK, calendar_idle_s=0.02, redecide_max=2)).opened(HOUSE, WILSON)
    conflict, unknown = Fault(before=Conflict("once")), lost(committed=True)
    house.journal.next("append", conflict, unknown, conflict, conflict, conflict, conflict)
    commands = [book(HOUSE, 0), book(WILSON, 0), book(WILSON, 1), cancel(HOUSE, uid("none")), book(HOUSE, 0)]
    for _ in range(3):
        await house.once(*commands)
    await house.rival().send(publish(HOUSE, 1, first=9))
    await house.once(*commands)
    await house.once(*commands)
    await until(lambda: house.actor.status()["backlog"] == 0)

    house.clock.pass_(minutes=1)

    await until(lambda: house.actor.status()["active_calendars"] == 0)


# The end


async def test_a_drain_commits_what_is_decided_and_takes_in_nothing_more() -> None:
    house = await House().opened(HOUSE)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))
    sending = asyncio.create_task(house.once(book(HOUSE, 0)))
    await gate.entered.wait()

    draining = asyncio.create_task(house.actor.drain(5))
    await settle()
    assert await house.once(book(HOUSE, 1, patient="boris")) == [NOT_ACTIVE]
    assert not draining.done()
    gate.open()

    assert await draining is True
    assert codes(await sending) == ["done"]
    assert house.journal.closed


async def test_a_drain_that_takes_too_long_says_so() -> None:
    house = await House(limits=SHORT).opened(HOUSE)
    house.journal.away()
    await house.once(book(HOUSE, 0))

    assert await house.actor.drain(0.01) is False
    assert house.journal.closed


async def test_an_actor_that_was_never_used_drains_at_once() -> None:
    assert await House().actor.drain(0) is True


async def test_a_flush_that_dies_of_a_bug_is_reported() -> None:
    house = await House(limits=SHORT).opened(HOUSE)
    house.journal.next("append", Fault(before=AssertionError("a bug")))

    await house.once(book(HOUSE, 0))

    assert house.bugs == 1


# Deadlines and the clock


async def test_a_command_past_its_deadline_is_not_decided() -> None:
    house = await House().opened(HOUSE)

    late, in_time = book(HOUSE, 0, deadline=NOW - MINUTE), book(HOUSE, 1, patient="boris", deadline=NOW)

    assert codes(await house.send(late, in_time)) == ["expired", "done"]


async def test_what_nobody_waits_for_any_more_is_not_decided_again_but_what_was_told_pending_is() -> None:
    house = await House(limits=SHORT).opened(HOUSE)
    house.journal.away()
    await house.once(book(HOUSE, 0, deadline=NOW + MINUTE), cancel(HOUSE, uid("none"), deadline=NOW + MINUTE))
    house.clock.pass_(minutes=2)
    house.journal.next("append", Fault(before=Conflict("once")))
    house.journal.back()

    await until(lambda: house.actor.status()["backlog"] == 0)

    assert house.visits() == {visit_id(HOUSE, 0): "booked"}
    assert house.journal.appends[-1].look_up == []


async def test_what_was_told_pending_has_its_refusal_stored_even_when_a_repeat_was_given_up() -> None:
    house = await House(limits=SHORT).opened(HOUSE)
    await house.rival().opened(WILSON)
    await house.rival().send(book(WILSON, 0))
    command = book(HOUSE, 0, respond_async=True)
    assert codes(await house.once(command)) == ["pending"]
    gate = Gate()
    # It conflicts, is refused then, and the outcome of writing that down is unknown while a repeat loses patience.
    house.journal.next("append", Fault(), Fault(gate=gate, before=OutcomeUnknown("lost")))
    await gate.entered.wait()
    await house.once(replace(command, respond_async=False))
    gate.open()
    await until(lambda: house.actor.status()["backlog"] == 0)

    assert house.database.tables.command[command.command_id].answer["rejected"]["code"] == "patient_overlap"


async def test_a_repeat_that_joined_what_was_given_up_is_to_be_sent_again() -> None:
    """The first caller is gone; the one who repeats it has time left and has to get an answer."""
    house = await House().opened(HOUSE)
    gate = Gate()
    house.journal.next("append", Fault(gate=gate, before=Conflict("once")))
    command = book(HOUSE, 0, deadline=NOW + MINUTE)
    first = asyncio.create_task(house.once(command))
    await gate.entered.wait()
    repeat = house.sending(replace(command, deadline=NOW + 9 * MINUTE))
    await settle()
    house.clock.pass_(minutes=2)

    gate.open()

    assert await first == [NOT_ACTIVE]
    assert codes(await repeat) == ["done"]


async def test_the_time_of_a_calendar_never_runs_backwards() -> None:
    house = await House().opened(HOUSE)
    house.clock.now = NOW + MINUTE
    await house.send(book(HOUSE, 0))
    house.clock.now = NOW - MINUTE

    await house.send(book(HOUSE, 1, patient="boris"))
    heir = house.rival()
    (reply,) = await heir.send(book(HOUSE, 2, patient="clara"))

    assert isinstance(reply, Done)
    assert reply.answer["appointment"]["created_at"] == NOW + MINUTE
    times = [row.at for (_, _), row in sorted(house.database.tables.event.items(), key=lambda item: item[0])]
    assert times == sorted(times)
