"""What every journal promises (``actors.journal``), kept by the one in memory and the one in PostgreSQL alike."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from actors.calendar import evolve
from actors.decisions import Busy
from actors.journal import (
    Append,
    CommandRow,
    Conflict,
    NewerPlacement,
    NoSuchCalendar,
    StaleEpoch,
    collect_changes,
)
from actors.messages import (
    AbortMove,
    AppointmentBooked,
    AppointmentRescheduled,
    BlockSlot,
    CancelSlot,
    Done,
    ExpireHolds,
    FulfilAppointment,
    PublishSlots,
    RecordArrival,
    Rejected,
    RemoveClosure,
    UnblockSlot,
)
from actors.policy import Policy
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
    slot,
    slot_id,
    visit_id,
)
from tests.contract.conftest import HOLDS_MAX, LIVE_APPOINTMENTS_MAX, World
from tests.contract.owner import Owner
from tests.given import DAY, MINUTE, NOW, OPENS, SLOT, as_json, state, uid

UNLIMITED = Policy(live_appointments_max=0, holds_max=0)


async def opened(world: World, *doctor_ids: str, slots: int = 4, policy: Policy | None = None) -> Owner:
    """An owner of calendars with slots in them."""
    owner = Owner(world.journal(), policy=policy or Policy())
    for doctor_id in doctor_ids:
        world.add_doctor(doctor_id)
        await owner.take(doctor_id)
        owner.do(publish(doctor_id, slots))
    await owner.commit()
    return owner


def done(reply: Done | Rejected) -> dict[str, Any]:
    """The answer of a command that must have been accepted."""
    assert isinstance(reply, Done), reply
    return dict(reply.answer)


# Claiming


async def test_every_claim_raises_the_epoch(world: World) -> None:
    world.add_doctor(HOUSE)
    one, other = world.journal(), world.journal()

    epochs = [(await journal.claim(HOUSE, 0)).epoch for journal in (one, other, one)]

    assert epochs == [1, 2, 3]
    assert world.calendar(HOUSE) == (3, 0, None)


async def test_claims_at_once_are_claims_apart(world: World) -> None:
    world.add_doctor(HOUSE)
    journals = [world.journal() for _ in range(3)]

    claims = await asyncio.gather(*(journal.claim(HOUSE, 0) for journal in journals for _ in range(3)))

    assert sorted(claim.epoch for claim in claims) == list(range(1, 10))


async def test_nobody_claims_or_loads_what_is_not_there(world: World) -> None:
    with pytest.raises(NoSuchCalendar):
        await world.journal().claim(HOUSE, 0)
    with pytest.raises(NoSuchCalendar):
        await world.journal().load(HOUSE, NOW)
    world.place(7)
    with pytest.raises(NoSuchCalendar):
        await world.journal().claim(HOUSE, 7)


async def test_a_claim_under_an_older_placement_is_refused(world: World) -> None:
    world.add_doctor(HOUSE)
    world.place(7)

    with pytest.raises(NewerPlacement) as refusal:
        await world.journal().claim(HOUSE, 6)

    assert refusal.value.generation == 7
    assert world.calendar(HOUSE)[0] == 0
    assert (await world.journal().claim(HOUSE, 7)).epoch == 1
    assert (await world.journal().claim(HOUSE, 8)).epoch == 2


# The fence


async def test_a_claim_fences_whoever_owned_the_calendar_before(world: World) -> None:
    old = await opened(world, HOUSE)
    await Owner(world.journal()).take(HOUSE)
    before = world.events(HOUSE)
    old.do(book(HOUSE, 0))

    with pytest.raises(StaleEpoch) as refusal:
        await old.commit()

    assert refusal.value.doctor_ids == (HOUSE,)
    assert world.events(HOUSE) == before
    assert world.appointments() == {}


async def test_even_a_refusal_needs_the_epoch(world: World) -> None:
    old = await opened(world, HOUSE)
    refused = cancel(HOUSE, uid("no such visit"))
    assert isinstance(old.do(refused), Rejected)
    assert await old.commit() == {}

    await Owner(world.journal()).take(HOUSE)
    assert isinstance(old.do(refused), Rejected)
    with pytest.raises(StaleEpoch) as refusal:
        await old.commit()
    assert refusal.value.doctor_ids == (HOUSE,)


async def test_a_batch_is_all_or_nothing_across_calendars(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    await Owner(world.journal()).take(WILSON)
    before = world.calendar(HOUSE)
    owner.do(book(HOUSE, 0))
    owner.do(book(WILSON, 1, patient="boris"))

    with pytest.raises(StaleEpoch) as refusal:
        await owner.commit()

    assert refusal.value.doctor_ids == (WILSON,)
    assert world.calendar(HOUSE) == before
    assert world.appointments() == {}
    assert await owner.journal.look_up([]) == {}


async def test_a_refusal_of_one_calendar_holds_up_the_events_of_another(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    await Owner(world.journal()).take(WILSON)
    owner.do(book(HOUSE, 0))
    owner.do(cancel(WILSON, uid("no such visit")))

    with pytest.raises(StaleEpoch) as refusal:
        await owner.commit()

    assert refusal.value.doctor_ids == (WILSON,)
    assert world.appointments() == {}


async def test_all_stale_calendars_are_named(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON, CUDDY)
    await Owner(world.journal()).take(WILSON, CUDDY)
    for doctor_id in (HOUSE, WILSON, CUDDY):
        owner.do(book(doctor_id, 0, patient=doctor_id))

    with pytest.raises(StaleEpoch) as refusal:
        await owner.commit()

    assert set(refusal.value.doctor_ids) == {WILSON, CUDDY}


@pytest.mark.parametrize("expected", [0, 2, 9])
async def test_a_batch_that_expects_another_number_is_stale(world: World, expected: int) -> None:
    owner = await opened(world, HOUSE)
    owner.do(book(HOUSE, 0))
    batch = owner.take_batch()
    batch.calendars = [replace(row, expected=expected, reached=expected + 1) for row in batch.calendars]

    with pytest.raises(StaleEpoch):
        await owner.journal.append(batch)

    assert world.calendar(HOUSE) == (1, 1, NOW)


async def test_a_calendar_that_is_not_there_is_stale(world: World) -> None:
    owner = await opened(world, HOUSE)
    owner.owned[WILSON] = owner.owned[HOUSE]
    batch = owner.take_batch(HOUSE)
    batch.calendars = [replace(row, doctor_id=WILSON, expected=0, reached=1) for row in batch.calendars]

    with pytest.raises(StaleEpoch) as refusal:
        await owner.journal.append(batch)

    assert refusal.value.doctor_ids == (WILSON,)


# Numbers and rows


async def test_events_are_numbered_without_a_gap_and_bear_their_epoch(world: World) -> None:
    owner = await opened(world, HOUSE)
    owner.do(book(HOUSE, 0))
    owner.do(book(HOUSE, 1, patient="boris"))
    await owner.commit()
    again = await Owner(world.journal()).take(HOUSE)
    again.do(cancel(HOUSE, visit_id(HOUSE, 0)), NOW + MINUTE)
    await again.commit()

    assert world.events(HOUSE) == [
        (1, "SlotsPublished", 1),
        (2, "AppointmentBooked", 1),
        (3, "AppointmentBooked", 1),
        (4, "AppointmentCancelled", 2),
    ]
    assert world.calendar(HOUSE) == (2, 4, NOW + MINUTE)


async def test_a_number_that_is_taken_is_not_given_again(world: World) -> None:
    owner = await opened(world, HOUSE)
    owner.do(book(HOUSE, 0))
    batch = owner.take_batch()
    batch.events = [replace(row, sequence=1) for row in batch.events]

    with pytest.raises(Conflict):
        await owner.journal.append(batch)

    assert world.calendar(HOUSE) == (1, 1, NOW)


async def test_a_batch_leaves_one_net_row_however_often_it_touched_a_thing(world: World) -> None:
    owner = await opened(world, HOUSE)
    visit = visit_id(HOUSE, 0)
    owner.do(hold(HOUSE, 0))
    owner.do(book(HOUSE, 0))
    owner.do(reschedule(HOUSE, visit, 1))
    owner.do(hold(HOUSE, 2))
    owner.do(release(HOUSE, 2))
    owner.do(cancel(HOUSE, visit))
    owner.do(book(HOUSE, 0, patient="boris", visit="another"))

    await owner.commit()

    assert world.appointments() == {
        visit: (HOUSE, slot_id(HOUSE, 1), "cancelled", 3, False),
        uid("another"): (HOUSE, slot_id(HOUSE, 0), "booked", 1, False),
    }
    assert len(world.events(HOUSE)) == 8
    assert state(await owner.journal.load(HOUSE, NOW)) == state(owner.calendar(HOUSE))


async def test_an_empty_batch_is_no_trouble(world: World) -> None:
    world.add_doctor(HOUSE)

    assert await world.journal().append(Append()) == {}
    assert world.nothing()


# Commands


async def test_a_command_id_is_used_once(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    owner.do(book(HOUSE, 0, command_id=uid("key")))
    await owner.commit()
    before = world.calendar(WILSON)
    owner.do(book(WILSON, 1, patient="boris"))
    owner.do(book(WILSON, 2, command_id=uid("key")))

    with pytest.raises(Conflict):
        await owner.commit()

    assert world.calendar(WILSON) == before
    assert set(world.appointments()) == {visit_id(HOUSE, 0)}


async def test_whoever_is_refused_gets_the_answer_it_had_before(world: World) -> None:
    owner = await opened(world, HOUSE)
    first = book(HOUSE, 0, command_id=uid("key"), fingerprint="print")
    answer = done(owner.do(first))
    await owner.commit()

    assert isinstance(owner.do(first), Rejected)
    other = cancel(HOUSE, uid("no such visit"))
    assert isinstance(owner.do(other), Rejected)
    stored = await owner.commit()

    assert set(stored) == {uid("key")}
    assert stored[uid("key")].fingerprint == "print"
    assert stored[uid("key")].user_id == uid("anna")
    assert stored[uid("key")].answer == {"done": as_json(answer)}


async def test_answers_are_looked_up_by_command_id(world: World) -> None:
    owner = await opened(world, HOUSE)
    answer = done(owner.do(book(HOUSE, 0, command_id=uid("key"))))
    await owner.commit()

    found = await world.journal().look_up([uid("key"), uid("never used")])

    assert {command_id: stored.answer for command_id, stored in found.items()} == {
        uid("key"): {"done": as_json(answer)}
    }
    assert await world.journal().look_up(iter(())) == {}


async def test_a_batch_looks_up_what_it_stores_itself(world: World) -> None:
    """A refusal of a command that was told pending is stored, and looked up like every refusal."""
    owner = await opened(world, HOUSE)
    refused = cancel(HOUSE, uid("no such visit"), command_id=uid("key"))
    reply = owner.do(refused)
    assert isinstance(reply, Rejected)
    batch = owner.take_batch()
    answer = {"rejected": {"code": reply.code, "detail": reply.detail}}
    batch.commands.append(
        CommandRow(command_id=refused.command_id, user_id=uid("anna"), fingerprint="f", answer=answer, at=NOW)
    )

    stored = await owner.journal.append(batch)

    assert stored[uid("key")].answer == answer


# What only the database can see


async def test_a_patient_is_in_one_place_at_a_time(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    owner.do(book(HOUSE, 1))
    await owner.commit()
    before = world.calendar(WILSON)

    owner.do(book(WILSON, 1))
    with pytest.raises(Conflict):
        await owner.commit()

    assert world.calendar(WILSON) == before
    assert set(world.appointments()) == {visit_id(HOUSE, 1)}
    await owner.take(WILSON)
    owner.do(book(WILSON, 0))
    owner.do(book(WILSON, 2))
    await owner.commit()


async def test_two_calendars_of_one_batch_see_each_other(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    owner.do(book(HOUSE, 1))
    owner.do(book(WILSON, 1))

    with pytest.raises(Conflict):
        await owner.commit()

    assert world.appointments() == {}


async def test_only_a_live_visit_stands_in_the_way(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    owner.do(book(HOUSE, 1))
    await owner.commit()
    owner.do(cancel(HOUSE, visit_id(HOUSE, 1)))
    owner.do(book(WILSON, 1))

    await owner.commit()

    assert world.appointments()[visit_id(WILSON, 1)][2] == "booked"


async def test_a_visit_moved_within_its_calendar_is_checked_too(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    owner.do(book(HOUSE, 0))
    owner.do(book(WILSON, 1))
    await owner.commit()
    owner.do(reschedule(HOUSE, visit_id(HOUSE, 0), 1))

    with pytest.raises(Conflict):
        await owner.commit()

    assert world.appointments()[visit_id(HOUSE, 0)] == (HOUSE, slot_id(HOUSE, 0), "booked", 1, False)


async def test_a_batch_may_swap_two_visits_of_a_patient(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    owner.do(book(HOUSE, 0))
    owner.do(book(WILSON, 1))
    await owner.commit()
    owner.do(reschedule(HOUSE, visit_id(HOUSE, 0), 1))
    owner.do(reschedule(WILSON, visit_id(WILSON, 1), 0))

    await owner.commit()

    assert world.appointments() == {
        visit_id(HOUSE, 0): (HOUSE, slot_id(HOUSE, 1), "rescheduled", 2, False),
        visit_id(WILSON, 1): (WILSON, slot_id(WILSON, 0), "rescheduled", 2, False),
    }


async def test_a_batch_may_swap_two_visits_of_a_doctor(world: World) -> None:
    owner = await opened(world, HOUSE)
    owner.do(book(HOUSE, 0))
    owner.do(book(HOUSE, 1, patient="boris"))
    await owner.commit()
    # By way of a third slot, as patients would do it; the net rows are a swap.
    owner.do(reschedule(HOUSE, visit_id(HOUSE, 0), 2))
    owner.do(reschedule(HOUSE, visit_id(HOUSE, 1), 0, by="boris"))
    owner.do(reschedule(HOUSE, visit_id(HOUSE, 0), 1))

    await owner.commit()

    assert world.appointments()[visit_id(HOUSE, 0)][:3] == (HOUSE, slot_id(HOUSE, 1), "rescheduled")
    assert world.appointments()[visit_id(HOUSE, 1)][:3] == (HOUSE, slot_id(HOUSE, 0), "rescheduled")


async def test_the_limit_of_live_visits_spans_calendars(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    for number in range(LIVE_APPOINTMENTS_MAX):
        owner.do(book((HOUSE, WILSON)[number % 2], number))
    await owner.commit()
    before = world.appointments()
    owner.do(book(WILSON, 3))

    with pytest.raises(Conflict):
        await owner.commit()

    assert world.appointments() == before


async def test_staff_pass_the_limit_and_visits_that_have_ended_do_not_count(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON, slots=8)
    for number in range(LIVE_APPOINTMENTS_MAX):
        owner.do(book(HOUSE, number))
    await owner.commit()
    owner.do(book(WILSON, 3, override=SEALED))
    await owner.commit()

    owner.do(book(WILSON, 5), OPENS + SLOT)
    with pytest.raises(Conflict):
        await owner.commit()
    await owner.take(WILSON)
    owner.do(book(WILSON, 5), OPENS + 2 * SLOT)
    await owner.commit()

    assert len(world.appointments()) == LIVE_APPOINTMENTS_MAX + 2


async def test_a_visit_of_ones_own_up_to_the_limit_and_one_by_staff_past_it_share_a_batch(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON, slots=8)
    for number in range(LIVE_APPOINTMENTS_MAX - 1):
        owner.do(book(HOUSE, number))
    await owner.commit()

    owner.do(book(HOUSE, 5))
    owner.do(book(WILSON, 6, override=SEALED))
    await owner.commit()
    owner.do(book(WILSON, 7))
    with pytest.raises(Conflict):
        await owner.commit()

    assert len(world.appointments()) == LIVE_APPOINTMENTS_MAX + 1


async def test_nobody_books_for_who_has_been_erased(world: World) -> None:
    owner = await opened(world, HOUSE)
    world.add_erased(uid("anna"))
    command = book(HOUSE, 0)
    owner.do(command)

    with pytest.raises(Conflict):
        await owner.commit()

    facts = await owner.journal.facts([uid("anna"), uid("boris")], [], [])
    assert set(facts.erased) == {uid("anna")}
    await owner.take(HOUSE)
    refusal = owner.do(command, facts=facts)
    assert isinstance(refusal, Rejected)
    assert refusal.code == "not_found"


async def test_no_limit_is_no_limit(world: World) -> None:
    journal = world.journal(live_appointments_max=0, holds_max=0)
    owner = Owner(journal, policy=UNLIMITED)
    world.add_doctor(HOUSE)
    await owner.take(HOUSE)
    owner.do(publish(HOUSE, 10))
    for number in range(5):
        done(owner.do(book(HOUSE, number)))
        done(owner.do(hold(HOUSE, number + 5)))

    await owner.commit()


async def test_the_limit_of_holds_spans_calendars_and_counts_while_they_last(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    for number in range(HOLDS_MAX):
        owner.do(hold(HOUSE, number))
    await owner.commit()
    later = NOW + owner.policy.hold_ttl
    owner.do(hold(WILSON, 0), later - MINUTE)

    with pytest.raises(Conflict):
        await owner.commit()

    await owner.take(WILSON)
    owner.do(hold(WILSON, 0), later)
    owner.do(hold(WILSON, 1, by="boris"), later)
    await owner.commit()


async def test_a_hold_used_up_in_the_batch_does_not_count(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    for number in range(HOLDS_MAX):
        owner.do(hold(HOUSE, number))
    await owner.commit()
    owner.do(book(HOUSE, 0))
    owner.do(hold(WILSON, 3))

    await owner.commit()


@pytest.mark.parametrize("whose", ["doctor", "patient"])
async def test_behind_all_checks_stand_the_constraints(world: World, whose: str) -> None:
    """A bug in the actor cannot double-book: what the calendar should have refused is written by hand, unasked."""
    owner = await opened(world, HOUSE, WILSON)
    owner.do(book(HOUSE, 0))
    await owner.commit()
    doctor, patient = (HOUSE, "boris") if whose == "doctor" else (WILSON, "anna")
    command = book(doctor, 0, patient=patient, visit="another")
    event = AppointmentBooked(
        appointment_id=command.appointment_id,
        patient_id=command.patient_id,
        booked_by=command.requester.user_id,
        slot_id=command.slot_id,
    )
    owner.happen(command, event)
    batch = owner.take_batch()
    batch.patients.clear()
    batch.limited_patients.clear()

    with pytest.raises(Conflict):
        await owner.journal.append(batch)

    assert set(world.appointments()) == {visit_id(HOUSE, 0)}


async def test_a_reschedule_into_a_taken_slot_cannot_be_committed_either(world: World) -> None:
    owner = await opened(world, HOUSE)
    owner.do(book(HOUSE, 0))
    owner.do(book(HOUSE, 1, patient="boris"))
    await owner.commit()
    command = reschedule(HOUSE, visit_id(HOUSE, 0), 1)
    owner.happen(
        command,
        AppointmentRescheduled(
            appointment_id=visit_id(HOUSE, 0),
            from_slot_id=slot_id(HOUSE, 0),
            slot_id=slot_id(HOUSE, 1),
            version=2,
        ),
    )

    with pytest.raises(Conflict):
        await owner.commit()


async def test_nothing_of_a_refused_batch_stays(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    owner.do(book(HOUSE, 0))
    owner.do(hold(HOUSE, 2))
    owner.do(close(HOUSE, 3, 3))
    await owner.commit()
    before = state(await owner.journal.load(HOUSE, NOW))
    owner.do(reschedule(HOUSE, visit_id(HOUSE, 0), 1))
    owner.do(release(HOUSE, 2))
    owner.do(by_staff(RemoveClosure, doctor=HOUSE, closure_id=uid("closure")))
    owner.do(by_staff(BlockSlot, doctor=HOUSE, slot_id=slot_id(HOUSE, 0)))
    owner.do(book(WILSON, 1))

    with pytest.raises(Conflict):
        await owner.commit()

    assert state(await owner.journal.load(HOUSE, NOW)) == before
    assert (await owner.journal.load(WILSON, NOW)).appointments == {}


async def test_after_a_conflict_the_journal_goes_on(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    owner.do(book(HOUSE, 0))
    owner.do(book(WILSON, 0))
    with pytest.raises(Conflict):
        await owner.commit()

    await owner.take(HOUSE, WILSON)
    owner.do(book(HOUSE, 0))
    await owner.commit()

    assert [number for number, _, _ in world.events(HOUSE)] == [1, 2]


# Facts


async def test_the_facts_are_what_calendars_cannot_see_of_each_other(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    owner.do(book(HOUSE, 0))
    owner.do(book(WILSON, 1))
    owner.do(book(WILSON, 2))
    owner.do(cancel(WILSON, visit_id(WILSON, 2)))
    owner.do(book(WILSON, 3, patient="boris"))
    owner.do(hold(HOUSE, 2))
    owner.do(hold(HOUSE, 3, by="clara"))
    await owner.commit()
    owner.do(reserve(HOUSE, WILSON, 0, visit_id(HOUSE, 0)))
    await owner.commit()

    facts = await world.journal().facts(
        [uid("anna"), uid("clara")], [uid("anna"), uid("boris")], [uid("move"), uid("another")]
    )

    (busy,) = facts.busy.values()
    assert set(facts.busy) == {uid("anna")}
    assert sorted(busy, key=lambda each: each.start) == [
        Busy(appointment_id=visit_id(HOUSE, 0), doctor_id=HOUSE, start=OPENS, end=OPENS + SLOT),
        Busy(appointment_id=visit_id(WILSON, 1), doctor_id=WILSON, start=OPENS + SLOT, end=OPENS + 2 * SLOT),
    ]
    assert facts.holds == {uid("anna"): [(HOUSE, NOW + owner.policy.hold_ttl)]}
    assert facts.moves == {uid("move"): "reserved"}
    assert await world.journal().facts((), (), ()) == type(facts)()


# Loading


async def test_what_is_loaded_is_what_was_appended(world: World) -> None:
    owner = await opened(world, HOUSE, slots=12, policy=UNLIMITED)
    for number in range(6):
        owner.do(book(HOUSE, number, patient=f"patient {number}"))
    owner.do(reschedule(HOUSE, visit_id(HOUSE, 0), 6))
    owner.do(cancel(HOUSE, visit_id(HOUSE, 1)))
    owner.do(by_staff(RecordArrival, doctor=HOUSE, appointment_id=visit_id(HOUSE, 2)))
    owner.do(hold(HOUSE, 7))
    owner.do(close(HOUSE, 2, 3, name="both stay"))
    owner.do(close(HOUSE, 3, 4, name="overlapping", reason=SEALED))
    owner.do(close(HOUSE, 8, 8, name="taken back"))
    owner.do(by_staff(RemoveClosure, doctor=HOUSE, closure_id=uid("taken back")))
    owner.do(by_staff(BlockSlot, doctor=HOUSE, slot_id=slot_id(HOUSE, 5)))
    owner.do(by_staff(BlockSlot, doctor=HOUSE, slot_id=slot_id(HOUSE, 9)))
    owner.do(by_staff(CancelSlot, doctor=HOUSE, slot_id=slot_id(HOUSE, 10)))
    await owner.commit()

    loaded = await world.journal().load(HOUSE, NOW)

    assert state(loaded) == state(owner.calendar(HOUSE))
    assert loaded.displaced == {visit_id(HOUSE, number) for number in (2, 3, 4, 5)}
    changes = Append()
    collect_changes(loaded, changes)
    assert changes == Append(), "loading is no change"


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happened_is_loaded(world: World, seed: int) -> None:
    """A walk at random through two calendars and the moves between them, loaded again at every step."""
    walk = Walk(await opened(world, HOUSE, WILSON, slots=8, policy=UNLIMITED), random.Random(seed))
    walk.owner.journal = world.journal(live_appointments_max=0, holds_max=0)

    async def committed() -> bool:
        try:
            await walk.owner.commit()
        except Conflict:
            await walk.owner.take(HOUSE, WILSON, now=walk.now)
            return False
        for doctor_id in (HOUSE, WILSON):
            loaded = await walk.owner.journal.load(doctor_id, walk.now)
            kept = state(walk.owner.calendar(doctor_id))
            for move_id, each in loaded.reservations.items():
                # Only loading finds out what became of a move.
                kept["reservations"][move_id] = (*kept["reservations"][move_id][:2], each.moved, each.aborted)
            assert state(loaded) == kept
        return True

    for _ in range(15):
        for _ in range(walk.random.randint(1, 8)):
            walk.step()
        await committed()
        await walk.move(committed)
    for doctor_id in (HOUSE, WILSON):
        numbers = [number for number, _, _ in world.events(doctor_id)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > 15
    assert set(world.moves().values()) <= {"done", "released"}


class Walk:
    """Commands at random, mostly sensible ones."""

    def __init__(self, owner: Owner, dice: random.Random) -> None:
        self.owner = owner
        self.random = dice
        self.now = NOW
        self.steps = 0

    def step(self) -> None:
        """One command of anybody's."""
        self.steps += 1
        if self.random.random() < 0.2:
            self.now += self.random.choice((MINUTE, 6 * MINUTE))
        doctor = self.random.choice((HOUSE, WILSON))
        calendar = self.owner.calendar(doctor)
        number = self.random.randrange(8)
        who = f"{self.random.choice('abc')} of {doctor}"
        visit = self.some_visit(doctor)
        name = f"step {self.steps}"
        choices: list[Any] = [
            *[lambda: book(doctor, number, patient=who, visit=name)] * 4,
            *[lambda: replace(hold(doctor, number, by=who), hold_id=uid(f"hold {name}"))] * 2,
            *[lambda: reschedule(doctor, visit, number)] * 2,
            lambda: cancel(doctor, visit),
            lambda: by_staff(RecordArrival, doctor=doctor, appointment_id=visit),
            lambda: by_staff(BlockSlot, doctor=doctor, slot_id=slot_id(doctor, number)),
            *[lambda: by_staff(UnblockSlot, doctor=doctor, slot_id=slot_id(doctor, number))] * 2,
            lambda: close(doctor, number, number, name=name),
            *[lambda: by_staff(RemoveClosure, doctor=doctor, closure_id=min(calendar.closures, default=uid("none")))]
            * 2,
            lambda: by_staff(ExpireHolds, doctor=doctor),
        ]
        self.owner.do(self.random.choice(choices)(), self.now)

    def some_visit(self, doctor: str) -> str:
        """A live visit, if there is any."""
        live = [each.id for each in self.owner.calendar(doctor).appointments.values() if each.status.live]
        return self.random.choice(sorted(live) or [uid("none")])

    async def move(self, committed: Callable[[], Awaitable[bool]]) -> None:
        """A move from one to the other, committed after each step."""
        self.steps += 1
        source, target = self.random.sample((HOUSE, WILSON), 2)
        visit, number, name = self.some_visit(source), self.random.randrange(8), f"step {self.steps}"
        reply = self.owner.do(reserve(source, target, number, visit, name=name), self.now)
        if not await committed() or isinstance(reply, Rejected):
            return
        reply = self.owner.do(move_out(source, target, number, visit, name=name), self.now)
        left = moved(self.owner.batch.events[-1].event) if isinstance(reply, Done) else None
        if not await committed():
            left = None
            give_up = by_staff(AbortMove, doctor=source, move_id=uid(name), target_doctor_id=target)
            self.owner.do(give_up, self.now)
            assert await committed()
        self.owner.do(finish(target, name=name, appointment=left), self.now)
        assert await committed()


async def test_a_calendar_is_loaded_from_its_today_on(world: World) -> None:
    """A day back, whatever the time zone; before that, only what somebody still has."""
    owner = await opened(world, HOUSE, slots=3)
    today = OPENS + 3 * DAY
    owner.do(publish(HOUSE, 2, first=100, opens=today - 100 * SLOT))
    owner.do(book(HOUSE, 0))
    owner.do(book(HOUSE, 1, patient="boris"))
    owner.do(by_staff(FulfilAppointment, doctor=HOUSE, appointment_id=visit_id(HOUSE, 0)), OPENS)
    await owner.commit()

    loaded = await world.journal().load(HOUSE, OPENS + 3 * DAY)

    # The live visit of three days ago keeps its slot; the one that took place is history, and so is the free slot.
    assert set(loaded.slots) == {slot_id(HOUSE, 1), slot_id(HOUSE, 100), slot_id(HOUSE, 101)}
    assert set(loaded.appointments) == {visit_id(HOUSE, 1)}
    assert loaded.sequence == owner.calendar(HOUSE).sequence
    assert loaded.last_event_at == OPENS
    one_day_after = await world.journal().load(HOUSE, OPENS + DAY)
    assert set(one_day_after.slots) == {*(slot_id(HOUSE, n) for n in (0, 1, 2, 100, 101))}
    assert set(one_day_after.appointments) == {visit_id(HOUSE, 1)}


async def test_a_hold_on_a_slot_of_long_ago_can_still_be_said_to_have_ended(world: World) -> None:
    """Nobody wrote it down at the time, because nothing ran: it must not stay in the table for ever."""
    owner = await opened(world, HOUSE, slots=1)
    owner.do(hold(HOUSE, 0))
    await owner.commit()

    again = await Owner(world.journal()).take(HOUSE, now=OPENS + 9 * DAY)
    again.do(by_staff(ExpireHolds, doctor=HOUSE), OPENS + 9 * DAY)
    await again.commit()

    assert world.events(HOUSE)[-1][1] == "HoldExpired"
    assert (await world.journal().facts((), [uid("anna")], ())).holds == {}


async def test_a_slot_that_was_closed_stays_closed_when_its_closure_is_over(world: World) -> None:
    """A visit that nobody ended is loaded long after its closure: it is displaced still, as its row says."""
    owner = await opened(world, HOUSE, slots=2)
    owner.do(book(HOUSE, 0))
    owner.do(close(HOUSE, 0, 0))
    await owner.commit()

    loaded = await world.journal().load(HOUSE, OPENS + 9 * DAY)

    assert loaded.slots[slot_id(HOUSE, 0)].status == "blocked"
    assert loaded.displaced == {visit_id(HOUSE, 0)}


async def test_taking_back_a_closure_opens_what_is_to_come_and_leaves_the_past(world: World) -> None:
    """Slots of long ago are not in memory: whatever they were, replaying the journal must say the same of them."""
    owner = await opened(world, HOUSE, slots=3)
    late = OPENS + 9 * DAY
    owner.do(publish(HOUSE, 2, first=50, opens=late - 50 * SLOT))
    owner.do(book(HOUSE, 0))
    last = (late - OPENS) / SLOT
    owner.do(close(HOUSE, 0, last + 5))
    await owner.commit()

    again = await Owner(world.journal()).take(HOUSE, now=late - MINUTE)
    command = by_staff(RemoveClosure, doctor=HOUSE, closure_id=uid("closure"))
    assert done(again.do(command, late - MINUTE)) == {"opened": 2}
    (removed,) = again.batch.events
    await again.commit()

    replayed = owner.calendar(HOUSE)
    evolve(replayed, removed.event, removed.at)
    for loaded in (again.calendar(HOUSE), await world.journal().load(HOUSE, late)):
        assert set(loaded.slots) == {slot_id(HOUSE, 0), slot_id(HOUSE, 50), slot_id(HOUSE, 51)}
        assert loaded.slots[slot_id(HOUSE, 50)].status == "free"
        for each in loaded.slots.values():
            assert each.status == replayed.slots[each.id].status
        assert loaded.displaced == replayed.displaced == {visit_id(HOUSE, 0)}
    assert replayed.slots[slot_id(HOUSE, 1)].status == "blocked", "as its row still says"


async def test_a_closure_that_is_over_can_still_be_removed(world: World) -> None:
    owner = await opened(world, HOUSE, slots=2)
    late = OPENS + 90 * DAY
    owner.do(publish(HOUSE, 2, first=50, opens=late - 49 * SLOT))
    owner.do(close(HOUSE, 0, 1))
    await owner.commit()

    again = await Owner(world.journal()).take(HOUSE, now=late)
    assert [each.status for each in again.calendar(HOUSE).slots.values()] == ["free", "free"]
    command = by_staff(RemoveClosure, doctor=HOUSE, closure_id=uid("closure"))
    assert done(again.do(command, late)) == {"opened": 0}
    await again.commit()

    removed = await world.journal().load(HOUSE, late)
    assert (removed.closures, removed.closures_over) == ({}, set())
    assert isinstance(again.do(command, late), Rejected)


async def test_a_closure_of_the_past_closes_nothing_that_has_ended(world: World) -> None:
    owner = await opened(world, HOUSE, slots=3)

    answer = done(owner.do(close(HOUSE, 0, 2), OPENS + SLOT))
    await owner.commit()

    assert answer["blocked"] == 2
    loaded = await world.journal().load(HOUSE, OPENS)
    assert [loaded.slots[slot_id(HOUSE, number)].status for number in range(3)] == ["free", "blocked", "blocked"]
    assert state(loaded) == state(owner.calendar(HOUSE))


# Moves across calendars


async def test_a_move_is_one_row_of_an_appointment_all_the_way(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    visit = visit_id(HOUSE, 0)
    owner.do(book(HOUSE, 0))
    owner.do(reserve(HOUSE, WILSON, 2, visit))
    await owner.commit()
    assert world.moves() == {uid("move"): "reserved"}
    assert state(await owner.journal.load(WILSON, NOW)) == state(owner.calendar(WILSON))

    owner.do(move_out(HOUSE, WILSON, 2, visit))
    left = moved(owner.batch.events[-1].event)
    await owner.commit()
    assert world.moves() == {uid("move"): "moved"}
    assert world.appointments() == {visit: (WILSON, slot_id(WILSON, 2), "rescheduled", 2, False)}
    assert state(await owner.journal.load(HOUSE, NOW)) == state(owner.calendar(HOUSE))
    target = await owner.journal.load(WILSON, NOW)
    assert target.appointments == {}
    assert target.reservations[uid("move")].moved == left

    owner.do(finish(WILSON, appointment=left))
    await owner.commit()
    assert world.moves() == {uid("move"): "done"}
    assert world.appointments() == {visit: (WILSON, slot_id(WILSON, 2), "rescheduled", 2, False)}
    assert state(await owner.journal.load(WILSON, NOW)) == state(owner.calendar(WILSON))


async def test_a_refused_move_is_aborted_then_released_and_may_be_tried_again(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    visit = visit_id(HOUSE, 0)
    owner.do(reserve(HOUSE, WILSON, 2, visit))
    await owner.commit()

    refusal = owner.do(move_out(HOUSE, WILSON, 2, visit))
    assert isinstance(refusal, Rejected)
    await owner.commit()
    assert world.moves() == {uid("move"): "aborted"}
    assert (await owner.journal.load(WILSON, NOW)).reservations[uid("move")].aborted

    owner.do(finish(WILSON))
    await owner.commit()
    assert world.moves() == {uid("move"): "released"}
    assert (await owner.journal.load(WILSON, NOW)).reservations == {}

    owner.do(book(HOUSE, 0))
    owner.do(reserve(HOUSE, WILSON, 3, visit))
    await owner.commit()
    assert world.moves() == {uid("move"): "reserved"}
    assert state(await owner.journal.load(WILSON, NOW)) == state(owner.calendar(WILSON))


async def test_a_slot_is_released_and_kept_anew_for_one_move_in_one_batch(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    visit = visit_id(HOUSE, 0)
    owner.do(reserve(HOUSE, WILSON, 2, visit))
    await owner.commit()
    owner.do(move_out(HOUSE, WILSON, 2, visit))
    await owner.commit()

    owner.do(finish(WILSON))
    owner.do(reserve(HOUSE, WILSON, 3, visit))
    await owner.commit()

    assert world.moves() == {uid("move"): "reserved"}


@pytest.mark.parametrize("reached", ["reserved", "moved", "done", "aborted"])
async def test_a_move_under_way_or_done_is_not_begun_again(world: World, reached: str) -> None:
    owner = await opened(world, HOUSE, WILSON, CUDDY)
    await bring(owner, reached)
    owner.do(reserve(HOUSE, CUDDY, 3, visit_id(HOUSE, 0)))

    with pytest.raises(Conflict):
        await owner.commit()

    assert world.moves() == {uid("move"): reached}
    assert (await owner.journal.load(CUDDY, NOW)).reservations == {}


@pytest.mark.parametrize("reached", ["moved", "done", "aborted", "released"])
async def test_a_move_passes_its_commit_point_once(world: World, reached: str) -> None:
    owner = await opened(world, HOUSE, WILSON)
    await bring(owner, reached)
    before = world.appointments()
    for command in (
        move_out(HOUSE, WILSON, 2, visit_id(HOUSE, 1)),  # Another visit under the same move.
        move_out(HOUSE, WILSON, 2, visit_id(HOUSE, 3)),  # None at all: refused, which has to be remembered.
    ):
        await owner.take(HOUSE)
        owner.do(command)
        with pytest.raises(Conflict):
            await owner.commit()

    assert world.moves() == {uid("move"): reached}
    assert world.appointments() == before


@pytest.mark.parametrize("reached", ["reserved", "aborted"])
async def test_nothing_is_taken_in_that_was_not_let_go(world: World, reached: str) -> None:
    owner = await opened(world, HOUSE, WILSON)
    await bring(owner, reached)
    stolen = replace(
        owner.calendar(HOUSE).appointments[visit_id(HOUSE, 1)], id=visit_id(HOUSE, 0), slot_id=slot_id(WILSON, 2)
    )
    owner.do(finish(WILSON, appointment=replace(stolen, patient_id=uid("boris"), start=OPENS, end=OPENS + SLOT)))

    with pytest.raises(Conflict):
        await owner.commit()

    assert world.moves() == {uid("move"): reached}


@pytest.mark.parametrize("reached", ["reserved", "moved"])
async def test_no_slot_is_released_whose_move_was_not_aborted(world: World, reached: str) -> None:
    owner = await opened(world, HOUSE, WILSON)
    await bring(owner, reached)
    owner.do(finish(WILSON))

    with pytest.raises(Conflict):
        await owner.commit()

    assert world.moves() == {uid("move"): reached}


async def test_a_visit_may_move_to_a_time_that_overlaps_its_own(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON)
    world.add_doctor(CUDDY)
    await owner.take(CUDDY)
    owner.do(by_staff(PublishSlots, doctor=CUDDY, slots=(slot(CUDDY, 0.5),)))
    owner.do(book(HOUSE, 0))
    owner.do(reserve(HOUSE, CUDDY, 0.5, visit_id(HOUSE, 0)))
    await owner.commit()
    owner.do(move_out(HOUSE, CUDDY, 0.5, visit_id(HOUSE, 0)))

    await owner.commit()

    assert world.appointments()[visit_id(HOUSE, 0)][0] == CUDDY


async def test_a_move_is_checked_against_the_patients_visits_everywhere(world: World) -> None:
    owner = await opened(world, HOUSE, WILSON, CUDDY)
    owner.do(book(HOUSE, 0))
    owner.do(book(CUDDY, 2))
    owner.do(reserve(HOUSE, WILSON, 2, visit_id(HOUSE, 0)))
    await owner.commit()
    owner.do(move_out(HOUSE, WILSON, 2, visit_id(HOUSE, 0)))

    with pytest.raises(Conflict):
        await owner.commit()

    assert world.moves() == {uid("move"): "reserved"}
    assert world.appointments()[visit_id(HOUSE, 0)][0] == HOUSE


async def bring(owner: Owner, reached: str) -> None:
    """Take the move ``move`` of a visit of House's to Wilson's slot 2 so far."""
    visit = visit_id(HOUSE, 0)
    owner.do(book(HOUSE, 1, patient="boris"))
    if reached in ("reserved", "moved", "done"):
        owner.do(book(HOUSE, 0))
    owner.do(reserve(HOUSE, WILSON, 2, visit))
    await owner.commit()
    if reached == "reserved":
        return
    owner.do(move_out(HOUSE, WILSON, 2, visit))
    event = owner.batch.events[-1].event
    await owner.commit()
    if reached in ("done", "released"):
        owner.do(finish(WILSON, appointment=moved(event) if reached == "done" else None))
        await owner.commit()
