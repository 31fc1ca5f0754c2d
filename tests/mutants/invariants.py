"""What must always hold (``actors``, 1 to 6), each as a scene that an actor plays and that fails if it does not.

A scene takes a ``House``, so that mutants of the actor, of the core and of the journal can be put into it.
"""

from __future__ import annotations

import asyncio

from actors.journal import Conflict, JournalUnavailable, StaleEpoch
from actors.messages import Done, NotDecided, Pending, Reply
from tests.clinic import CUDDY, HOUSE, WILSON, book, cancel, publish, slot_id, visit_id
from tests.fakes.actor_house import House, settle, until
from tests.fakes.memory_journal import Fault, Gate, lost
from tests.given import as_json, uid


async def one_decider(house: House) -> None:
    """1. Two actors own a calendar: whoever was fenced changes nothing and is told so."""
    await house.opened(HOUSE)
    await house.rival().send(book(HOUSE, 0))

    await house.once(book(HOUSE, 2, patient="boris"))
    await house.send(book(HOUSE, 1, patient="clara"))

    assert house.visits() == {visit_id(HOUSE, 0): "booked", visit_id(HOUSE, 1): "booked"}
    assert house.kinds(HOUSE) == ["SlotsPublished", "AppointmentBooked", "AppointmentBooked"]


async def nothing_acknowledged_is_lost(house: House) -> None:
    """2. Whatever trouble a commit meets: what was answered as done is in the database, then and later."""
    await house.opened(HOUSE)
    gate = Gate()
    troubles = [
        Fault(gate=gate),
        lost(committed=False),
        lost(committed=True),
        Fault(before=Conflict("once")),
        Fault(before=JournalUnavailable("once")),
        Fault(before=StaleEpoch([HOUSE])),
        Fault(),
    ]
    for number, trouble in enumerate(troubles):
        await house.send(publish(HOUSE, 1, first=number))
        house.journal.next("append", trouble)
        sending = asyncio.create_task(house.once(book(HOUSE, number, patient=str(number))))
        await settle()
        if sending.done():
            _acknowledged_are_there(house, await sending, number)
        gate.open()
        _acknowledged_are_there(house, await sending, number)


def _acknowledged_are_there(house: House, replies: list[Reply], number: int) -> None:
    for reply in replies:
        if isinstance(reply, Done):
            assert visit_id(HOUSE, number) in house.visits(), "acknowledged and not there"


async def nothing_is_doubled(house: House) -> None:
    """3. Neither a doctor nor a patient is in two places, however they are asked to be."""
    await house.opened(HOUSE, WILSON, CUDDY)
    await house.once(
        book(HOUSE, 0),
        book(HOUSE, 0, patient="boris", visit="same slot"),
        book(WILSON, 0),
        book(CUDDY, 0),
    )
    await house.once(book(HOUSE, 0, patient="clara", visit="same slot, later"), book(WILSON, 0, visit="later"))

    live = [row for row in house.database.tables.appointment.values() if row["live"]]
    for one in live:
        for other in live:
            if one is not other and one["starts_at"] < other["ends_at"] and other["starts_at"] < one["ends_at"]:
                assert one["doctor_id"] != other["doctor_id"], "a doctor is in two places"
                assert one["patient_id"] != other["patient_id"], "a patient is in two places"
    assert live, "nobody was booked at all"


async def a_repeat_has_one_effect(house: House) -> None:
    """4. The same command again gets the first answer: at once, later, after it was undone, and elsewhere."""
    await house.opened(HOUSE, WILSON)
    command = book(HOUSE, 0)
    opening = publish(HOUSE, 2, first=10)
    first, second, opened, opened_again = await house.send(command, command, opening, opening)
    assert isinstance(first, Done), first
    assert as_json(second) == as_json(first)
    assert as_json(opened_again) == as_json(opened), "a repeat is told what the first was told"
    (refused_now,) = await house.send(command)
    assert as_json(refused_now) == as_json(first), "nobody is refused whose command was accepted before"
    await house.send(cancel(HOUSE, visit_id(HOUSE, 0)))
    (undone,) = await house.send(command)
    assert as_json(undone) == as_json(first)
    (elsewhere,) = await house.rival().send(command)
    assert as_json(elsewhere) == as_json(first)
    assert house.kinds(HOUSE) == ["SlotsPublished", "AppointmentBooked", "SlotsPublished", "AppointmentCancelled"]


async def no_reply_reveals_what_may_be_undone(house: House) -> None:
    """5. A no is as good as a yes: it waits for what it was decided on, and for the epoch."""
    await house.opened(HOUSE, WILSON)
    await house.rival().send(book(WILSON, 0))
    gate = Gate()
    house.journal.next("append", Fault(gate=gate))
    # Anna is about to lose this visit: the database knows that she is at Wilson's.
    anna = asyncio.create_task(house.once(book(HOUSE, 0)))
    await gate.entered.wait()
    boris = house.sending(book(HOUSE, 0, patient="boris", visit="of boris"))
    await settle()
    assert not boris.done(), "answered before anything was checked"
    gate.open()
    await anna
    (reply,) = await boris
    assert isinstance(reply, Done), "refused because of a visit that never was"

    await house.rival().send(cancel(HOUSE, uid("of boris"), by="boris"))
    stale = await house.once(book(HOUSE, 0, patient="clara", visit="of clara"))
    assert all(isinstance(reply, NotDecided) for reply in stale), "a stale activation cannot even say no"


async def events_are_gapless(house: House) -> None:
    """6. Numbers 1, 2, 3 …, whatever was rolled back on the way."""
    await house.opened(HOUSE, WILSON)
    await house.rival().send(book(WILSON, 0))
    house.journal.next("append", Fault(), Fault(before=Conflict("once")), lost(committed=False), lost(committed=True))
    await house.send(book(HOUSE, 0), book(HOUSE, 1, patient="boris"))
    for number in (2, 3):
        replies = await house.once(book(HOUSE, number, patient="clara"))
        assert not any(isinstance(reply, Pending) for reply in replies)
    await until(lambda: house.actor.status()["backlog"] == 0)

    assert house.kinds(HOUSE) == ["SlotsPublished", *["AppointmentBooked"] * 3]
    slots = {row["slot_id"] for row in house.database.tables.appointment.values() if row["doctor_id"] == HOUSE}
    assert slots == {slot_id(HOUSE, number) for number in (1, 2, 3)}


async def nothing_is_announced_that_is_not_committed(house: House) -> None:
    """2, 6. What is announced is in the journal as announced, each number of a calendar after the one before it."""
    await house.opened(HOUSE, WILSON)
    await house.rival().send(book(WILSON, 0))
    gate = Gate()
    house.journal.next("append", Fault(gate=gate), Fault(before=Conflict("once")), lost(committed=False))
    booking = house.sending(book(HOUSE, 0), book(HOUSE, 1, patient="boris"))
    await gate.entered.wait()
    _announced_are_there(house)
    gate.open()
    await booking
    await house.send(cancel(HOUSE, visit_id(HOUSE, 1), by="boris"), book(WILSON, 1, patient="clara"))
    _announced_are_there(house)
    numbers = [row.sequence for row in house.announcer.announced if row.doctor_id == HOUSE]
    assert numbers, "nothing was announced"
    assert numbers == sorted(set(numbers)), "out of order, or twice"
    assert numbers[-1] == house.database.tables.calendar[HOUSE].sequence, "the last one was not announced"


def _announced_are_there(house: House) -> None:
    table = house.database.tables.event
    for row in house.announcer.announced:
        assert table.get((row.doctor_id, row.sequence)) == row, "announced and not there"
