"""The packed appointments of a calendar are a mapping like any other, and small."""

import gc
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.appointments import Appointments
from actors.calendar import Calendar
from actors.messages import AppointmentState, AppointmentStatus
from actors.slots import Slot
from tests.given import NOW, OPENS, SLOT, uid

SLOTS = 6
MEMORY_BYTES_MAX = 512 * 1024
"""Of a calendar of 960 slots that are all booked."""


def slot(number: int, **more: Any) -> Slot:
    """A slot whose ids are UUIDs."""
    values: dict[str, Any] = {
        "id": uid(f"slot {number}"),
        "start": OPENS + number * SLOT,
        "length": SLOT,
        "location_id": uid("princeton"),
        "service_id": uid("x-ray") if number % 2 else None,
    } | more
    return Slot(**values)


def visit(name: str, patient: str, at: Slot, **more: Any) -> AppointmentState:
    """A visit in a slot."""
    values: dict[str, Any] = {
        "id": uid(name),
        "patient_id": uid(patient),
        "booked_by": uid("user"),
        "slot_id": at.id,
        "location_id": at.location_id,
        "service_id": at.service_id,
        "start": at.start,
        "end": at.end,
        "status": AppointmentStatus.BOOKED,
        "version": 1,
        "moves": 0,
        "created_at": NOW,
        "updated_at": NOW,
    } | more
    return AppointmentState(**values)


instants = st.datetimes(timezones=st.just(NOW.tzinfo))
steps = st.lists(
    st.tuples(
        st.sampled_from(("put", "put", "put", "remove", "pack")),
        st.integers(0, 3),
        st.fixed_dictionaries(
            {},
            optional={
                "status": st.sampled_from(AppointmentStatus),
                "version": st.integers(1, 2**31),
                "moves": st.integers(0, 1000),
                "created_at": instants,
                "updated_at": instants,
                "booked_by": st.sampled_from((uid("mother"), uid("mother").upper(), "nurse", "", "é" * 16, "0" * 36)),
                "slot_id": st.sampled_from((uid("slot 0"), uid("slot long ago"), "s1")),
                "start": st.just(OPENS - SLOT),
                "end": st.just(OPENS + 100 * SLOT),
                "location_id": st.sampled_from((uid("plainsboro"), "hall")),
                "service_id": st.sampled_from((None, uid("x-ray"), "massage")),
            },
        ),
    ),
    max_size=30,
)


@given(steps)
def test_it_is_a_mapping_of_what_was_put_in_last_and_has_not_ended(
    steps: list[tuple[str, int, dict[str, Any]]],
) -> None:
    slots = {each.id: each for each in map(slot, range(SLOTS))}
    appointments = Appointments(slots)
    expected: dict[str, AppointmentState] = {}
    for step, number, changed in steps:
        # Some have one patient, and a patient keeps an appointment for as long as it is there.
        appointment_id = uid(f"visit {number}")
        match step:
            case "put":
                put = visit(f"visit {number}", f"patient {number // 2}", slot(number), **changed)
                appointments[appointment_id] = expected[appointment_id] = put
            case "remove":
                assert appointments.pop(appointment_id, None) == expected.pop(appointment_id, None)
            case "pack":
                appointments.pack()
                expected = {each.id: each for each in expected.values() if each.status.live}
        assert appointments == expected
        assert len(appointments) == len(list(appointments)) == len(expected)
        assert all(each in appointments for each in expected)
        for patient in (uid("patient 0"), uid("patient 1"), uid("patient 2"), "nobody"):
            theirs = {each.id: each for each in expected.values() if each.patient_id == patient}
            assert {each.id: each for each in appointments.of_patient(patient)} == theirs


def test_what_is_not_there_is_a_key_error_packed_or_not() -> None:
    appointments = Appointments({})
    with pytest.raises(KeyError):
        appointments["a1"]
    with pytest.raises(KeyError):
        del appointments["a1"]
    assert appointments.get("a1") is None


def test_what_the_record_of_a_slot_cannot_say_is_kept_as_it_is() -> None:
    there = slot(0)
    appointments = Appointments({there.id: there})
    elsewhere = visit("visit", "anna", there, start=there.start + timedelta(microseconds=1))
    appointments[elsewhere.id] = elsewhere
    appointments.pack()
    assert appointments[elsewhere.id] == elsewhere


@pytest.fixture
def traced() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("pause", [timedelta(), timedelta(minutes=5)])
def test_a_calendar_of_960_slots_takes_half_a_megabyte_when_all_are_booked(pause: timedelta) -> None:
    before = tracemalloc.get_traced_memory()[0]
    calendar = Calendar(uid("house"))
    for number in range(960):
        # Ids and places as they come from the database: no two are one object.
        opened = slot(number, start=OPENS + number * (SLOT + pause), location_id=uid("princeton"))
        calendar.put_slot(opened)
        calendar.put_appointment(visit(f"visit {number}", f"patient {number}", opened, booked_by=uid(f"user {number}")))
    calendar.forget_changes()
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    assert taken <= MEMORY_BYTES_MAX
