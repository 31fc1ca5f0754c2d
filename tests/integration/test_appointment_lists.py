"""Lists of visits and holds: who sees which, on which days, page by page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from persistence.identifiers import new_id
from tests.integration.practice import SLOT, Practice, days_on, instant, refusal
from tests.people import Person

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY = timedelta(days=1)


async def _ids(practice: Practice, who: Person, **params: Any) -> list[str]:
    return [visit["id"] for visit in (await practice.get(who, "/v1/appointments", **params))["items"]]


async def test_everybody_sees_what_is_theirs(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    mila = await practice.post(
        anna, "/v1/me/patients", {"name": "Mila Petrova", "birth_date": "2019-06-02"}, expect=201
    )
    house, here = await practice.doctor_with_slots()
    wilson, there = await practice.doctor_with_slots(first=days_on(4))
    own = await practice.book(anna, here[0], reason="Headaches")
    childs = await practice.book(anna, there[0], patient_id=mila["id"])
    others = await practice.book(boris, here[1])
    by_staff = await practice.book(house, here[2], patient_id=anna.patient_id)

    answer = await practice.send(anna, "GET", "/v1/appointments")
    assert instant(answer.headers["x-as-of"]) <= datetime.now(UTC)
    assert answer.json() == {"items": [own, _without_patient(by_staff), childs], "next_cursor": None}
    assert await _ids(practice, boris) == [others["id"]]
    assert await _ids(practice, house) == [own["id"], others["id"], by_staff["id"]]
    assert await _ids(practice, wilson) == [childs["id"]]
    assert await _ids(practice, practice.admin, doctor_id=house.doctor_id) == [own["id"], others["id"], by_staff["id"]]

    # Asking for somebody else's gives nothing, not a refusal that would tell whether there is anybody.
    assert await _ids(practice, anna, patient_id=mila["id"]) == [childs["id"]]
    assert await _ids(practice, anna, patient_id=anna.patient_id) == [own["id"], by_staff["id"]]
    assert await _ids(practice, boris, patient_id=anna.patient_id) == []
    assert await _ids(practice, boris, patient_id=new_id()) == []
    assert await _ids(practice, boris, doctor_id=wilson.doctor_id) == []
    assert await _ids(practice, house, doctor_id=wilson.doctor_id) == []
    assert await _ids(practice, house, patient_id=mila["id"]) == []
    assert await _ids(practice, practice.admin, patient_id=mila["id"]) == [childs["id"]]

    staffs = (await practice.get(house, "/v1/appointments"))["items"]
    assert [visit["patient"] for visit in staffs] == [
        {"id": who.patient_id, "name": "Anna Petrova", "birth_date": "1990-04-12", "phone": "+4930901820"}
        for who in (anna, boris, anna)
    ]
    assert staffs[0]["reason"] == "Headaches"
    assert not any("patient" in visit for visit in (await practice.get(anna, "/v1/appointments"))["items"])
    assert refusal(await practice.send(None, "GET", "/v1/appointments")) == "401 unauthenticated"


def _without_patient(visit: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in visit.items() if name != "patient"}


async def test_filters(practice: Practice) -> None:
    anna = await practice.people.patient()
    house, slots = await practice.doctor_with_slots(5)
    elsewhere = await practice.location("Europe/Moscow")
    (other,) = await practice.open_slots(house, days_on(9), location_id=elsewhere)
    booked, moved, arrived, cancelled = [await practice.book(anna, slot) for slot in slots[:4]]
    away = await practice.book(anna, other)
    await practice.change(anna, moved, "reschedule", {"slot_id": slots[4]})
    await practice.change(house, arrived, "arrive")
    await practice.change(anna, cancelled, "cancel")

    for who in (anna, house):
        assert await _ids(practice, who, status="booked") == [booked["id"], away["id"]]
        assert await _ids(practice, who, status="cancelled") == [cancelled["id"]]
        assert await _ids(practice, who, status=" arrived , rescheduled,arrived") == [arrived["id"], moved["id"]]
        assert await _ids(practice, who, status="fulfilled,noshow") == []
        assert await _ids(practice, who, location_id=elsewhere) == [away["id"]]
        assert await _ids(practice, who, location_id=new_id()) == []
        assert await _ids(practice, who, doctor_id=new_id()) == []
        every = [booked["id"], arrived["id"], cancelled["id"], moved["id"], away["id"]]
        assert await _ids(practice, who) == every
        assert await _ids(practice, who, location_id=practice.location_id, doctor_id=house.doctor_id) == every[:-1]
        assert await _ids(practice, who, status="booked", location_id=elsewhere, patient_id=anna.patient_id) == [
            away["id"]
        ]


async def test_days_are_those_of_each_location(practice: Practice) -> None:
    anna = await practice.people.patient()
    house = await practice.doctor()
    day = days_on(5, hour=0)
    first_to_see_it = await practice.location("Pacific/Kiritimati")
    last_to_see_it = await practice.location("Pacific/Pago_Pago")
    # Half past midnight there is half past ten of the day before in UTC; half past eleven at night there, of the next.
    (early,) = await practice.open_slots(house, day - timedelta(hours=13.5), location_id=first_to_see_it)
    (late,) = await practice.open_slots(house, day + timedelta(hours=34.5), location_id=last_to_see_it)
    (too_early,) = await practice.open_slots(house, day - timedelta(hours=14.5), location_id=first_to_see_it)
    (too_late,) = await practice.open_slots(house, day + timedelta(hours=35), location_id=last_to_see_it)
    before, begin, end, after = [(await practice.book(anna, slot))["id"] for slot in (too_early, early, late, too_late)]
    today, tomorrow = day.date(), day.date() + DAY

    for who in (anna, house, practice.admin):
        own = {"patient_id": anna.patient_id}
        assert await _ids(practice, who, **own, **{"from": today, "to": today}) == [begin, end]
        assert await _ids(practice, who, **own, **{"from": today}) == [begin, end, after]
        assert await _ids(practice, who, **own, to=today) == [before, begin, end]
        assert await _ids(practice, who, **own, **{"from": today - DAY, "to": today - DAY}) == [before]
        assert await _ids(practice, who, **own, **{"from": tomorrow, "to": tomorrow}) == [after]
        assert await _ids(practice, who, **own, **{"from": tomorrow + DAY}) == []


async def test_a_list_page_by_page(practice: Practice) -> None:
    anna = await practice.people.patient()
    mila = await practice.post(
        anna, "/v1/me/patients", {"name": "Mila Petrova", "birth_date": "2019-06-02"}, expect=201
    )
    _, mornings = await practice.doctor_with_slots(4)
    _, evenings = await practice.doctor_with_slots(4)
    for slot in mornings:
        await practice.book(anna, slot)
    for slot in evenings:
        await practice.book(anna, slot, patient_id=mila["id"])  # At the same times.
    whole = (await practice.get(anna, "/v1/appointments"))["items"]
    assert len(whole) == 8
    assert whole == sorted(whole, key=lambda visit: (visit["start"], visit["id"]))

    for limit in (1, 3, 7, 8, 200):
        seen: list[Any] = []
        cursor: dict[str, Any] = {}
        while True:
            page = await practice.get(anna, "/v1/appointments", limit=limit, **cursor)
            assert len(page["items"]) <= limit
            seen += page["items"]
            if page["next_cursor"] is None:
                break
            assert len(page["items"]) == limit
            cursor = {"cursor": page["next_cursor"]}
        assert seen == whole, limit

    # A page goes on behind its last item, whatever has become of that one.
    first = await practice.get(anna, "/v1/appointments", limit=4, status="booked")
    await practice.change(anna, first["items"][-1], "cancel")
    rest = await practice.get(anna, "/v1/appointments", status="booked", cursor=first["next_cursor"])
    assert [visit["id"] for visit in rest["items"]] == [visit["id"] for visit in whole[4:]]


async def test_holds_page_by_page(practice: Practice) -> None:
    anna = await practice.people.patient()
    _, slots = await practice.doctor_with_slots(3)
    for slot in slots:
        await practice.post(anna, "/v1/holds", {"slot_id": slot}, expect=201)

    whole = await practice.get(anna, "/v1/holds")
    assert sorted(hold["slot_id"] for hold in whole["items"]) == sorted(slots)
    assert whole["next_cursor"] is None
    first = await practice.get(anna, "/v1/holds", limit=2)
    second = await practice.get(anna, "/v1/holds", limit=2, cursor=first["next_cursor"])
    assert first["items"] + second["items"] == whole["items"]
    assert second["next_cursor"] is None


async def test_a_cursor_is_of_one_list(practice: Practice) -> None:
    anna = await practice.people.patient()
    doctor, slots = await practice.doctor_with_slots(3, first=days_on(2) + SLOT)
    for slot in slots[:2]:
        await practice.book(anna, slot)
    (later,) = await practice.open_slots(doctor, days_on(8))
    assert later
    visits = (await practice.get(anna, "/v1/appointments", limit=1))["next_cursor"]
    free = (await practice.get(None, "/v1/slots", doctor_id=doctor.doctor_id, limit=1))["next_cursor"]
    turned = visits[:-1] + ("A" if visits[-1] != "A" else "B")

    for path, cursor in (
        ("/v1/appointments", free),
        ("/v1/slots", visits),
        ("/v1/holds", visits),
        ("/v1/appointments", turned),
        ("/v1/appointments", visits[:-4]),
        ("/v1/appointments", visits + "AAAA"),
        ("/v1/appointments", ""),
        ("/v1/appointments", "%ff"),
        ("/v1/appointments", "naïve"),
        ("/v1/appointments", "W10"),
        ("/v1/appointments", "x" * 513),
    ):
        answer = await practice.send(anna, "GET", path, params={"cursor": cursor})
        assert refusal(answer) == "422 validation_error", (path, cursor)
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/query/cursor"]
