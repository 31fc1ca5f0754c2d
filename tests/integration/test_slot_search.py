"""Slots as the repository finds them, by each of its ways, against looking at every slot there is."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import open_database
from persistence.identifiers import new_id
from persistence.repositories import slots as repository
from persistence.repositories.slots import SlotRow, Slots, SlotSearch, SlotStatus, Window
from persistence.tables import app_user, doctor, slot

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
ALL = frozenset(SlotStatus)


@dataclass(frozen=True, slots=True)
class Stored:
    """A slot as it is in the table."""

    row: dict[str, Any]

    def read(self, now: datetime) -> SlotRow:
        expired = self.row["status"] == "held" and self.row["held_until"] is not None and self.row["held_until"] <= now
        return SlotRow(
            id=self.row["id"],
            doctor_id=self.row["doctor_id"],
            location_id=self.row["location_id"],
            service_id=self.row["service_id"],
            start=self.row["starts_at"],
            end=self.row["ends_at"],
            status=SlotStatus.FREE if expired else SlotStatus(self.row["status"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A database with doctors and slots, and all that is in it."""

    connection: AsyncConnection
    doctors: list[dict[str, Any]]
    locations: list[str]
    services: list[str]
    slots: list[Stored]

    def expected(self, search: SlotSearch) -> list[SlotRow]:
        """What matches, found by looking at everything."""
        doctors = {each["id"]: each for each in self.doctors}
        found = []
        for stored in self.slots:
            row = stored.read(search.now)
            owner = doctors[row.doctor_id]
            window = next(
                (each for each in search.windows if not each.location_ids or row.location_id in each.location_ids), None
            )
            if (
                window is not None
                and window.start <= row.start < window.end
                and row.status in search.statuses
                and (row.status is not SlotStatus.FREE or row.start > search.now)
                and search.doctor_id in (None, row.doctor_id)
                and search.location_id in (None, row.location_id)
                and (search.specialty is None or search.specialty in owner["specialties"])
                and (
                    search.service_id is None
                    or (search.service_id in owner["service_ids"] and row.service_id in (None, search.service_id))
                )
                and (search.after is None or (row.start, row.id) > search.after)
            ):
                found.append(row)
        return sorted(found, key=lambda row: (row.start, row.id))[: search.limit]


@pytest.fixture
async def filled(database_url: str) -> AsyncIterator[Filled]:
    dice = random.Random(7)
    locations, services = [new_id() for _ in range(4)], [new_id() for _ in range(3)]
    doctors: list[dict[str, Any]] = [
        {
            "id": new_id(),
            "user_id": new_id(),
            "sealed": b"",
            "search": [],
            "specialties": dice.sample(["cardiology", "dermatology", "surgery"], dice.randint(1, 2)),
            "location_ids": [],
            "service_ids": dice.sample(services, dice.randint(0, 2)),
        }
        for _ in range(12)
    ]
    doctors[0]["specialties"] = ["rare"]
    stored = []
    for owner in doctors:
        for number in dice.sample(range(96), 40):
            start = NOW - 24 * HOUR + number * HOUR
            status = dice.choice(["free", "free", "free", "held", "booked", "blocked", "cancelled"])
            until = dice.choice([None, NOW - HOUR, NOW, NOW + HOUR]) if status == "held" else None
            stored.append(
                {
                    "id": new_id(),
                    "doctor_id": owner["id"],
                    "location_id": dice.choice(locations),
                    "service_id": dice.choice([None, None, *services]),
                    "starts_at": start,
                    "ends_at": start + HOUR / 2,
                    "status": status,
                    "held_until": until,
                }
            )
    engine = open_database(database_url, pool_max=1)
    async with engine.connect() as connection:
        await connection.execute(
            insert(app_user),
            [
                {"id": each["user_id"], "login_index": each["user_id"].encode(), "password_hash": "", "role": "doctor"}
                for each in doctors
            ],
        )
        await connection.execute(insert(doctor), doctors)
        await connection.execute(insert(slot), stored)
        yield Filled(
            connection=connection,
            doctors=doctors,
            locations=locations,
            services=services,
            slots=[Stored(each) for each in stored],
        )
    await engine.dispose()


@pytest.mark.parametrize(
    ("few_doctors_max", "walk_max"),
    [(100, 2_000), (0, 2_000), (0, 5)],
    ids=["each doctor asked", "walked", "walked too short, then each asked"],
)
async def test_every_page_is_what_there_is(
    filled: Filled, few_doctors_max: int, walk_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "FEW_DOCTORS_MAX", few_doctors_max)
    monkeypatch.setattr(repository, "WALK_MAX", walk_max)
    one = (Window(start=NOW - 30 * HOUR, end=NOW + 60 * HOUR, location_ids=()),)
    two = (
        Window(start=NOW - 20 * HOUR, end=NOW + 20 * HOUR, location_ids=tuple(filled.locations[:2])),
        Window(start=NOW - 10 * HOUR, end=NOW + 30 * HOUR, location_ids=tuple(filled.locations[2:])),
    )
    doctor_id, location_id, service_id = filled.doctors[3]["id"], filled.locations[1], filled.services[0]
    found = 0
    for windows in (one, two):
        for statuses in (frozenset({SlotStatus.FREE}), frozenset({SlotStatus.HELD}), frozenset({"booked"}), ALL):
            for conditions in (
                {},
                {"doctor_id": doctor_id},
                {"location_id": location_id},
                {"specialty": "cardiology"},
                {"specialty": "rare"},
                {"specialty": "nothing"},
                {"service_id": service_id},
                {"doctor_id": doctor_id, "location_id": location_id},
                {"doctor_id": doctor_id, "specialty": filled.doctors[3]["specialties"][0], "service_id": service_id},
                {"specialty": "surgery", "location_id": location_id, "service_id": service_id},
            ):
                search = SlotSearch(
                    windows=windows,
                    now=NOW,
                    limit=9,
                    statuses=frozenset(SlotStatus(each) for each in statuses),
                    **conditions,
                )
                for _ in range(60):
                    page = await Slots(filled.connection).search(search)
                    assert page == filled.expected(search), conditions
                    found += len(page)
                    if len(page) < search.limit:
                        break
                    search = replace(search, after=(page[-1].start, page[-1].id))
    assert found > 1_000


async def test_a_hold_past_its_time_reads_as_free_and_a_reserved_slot_as_held(filled: Filled) -> None:
    window = Window(start=NOW, end=NOW + 90 * HOUR, location_ids=())
    held = SlotSearch(windows=(window,), now=NOW, limit=500, statuses=frozenset({SlotStatus.HELD}))
    free = replace(held, statuses=frozenset({SlotStatus.FREE}))
    until = {each.row["id"]: each.row["held_until"] for each in filled.slots if each.row["status"] == "held"}
    for row in await Slots(filled.connection).search(held):
        assert until[row.id] is None or until[row.id] > NOW
    expired = [row for row in await Slots(filled.connection).search(free) if row.id in until]
    assert expired
    assert all(until[row.id] <= NOW and row.status is SlotStatus.FREE for row in expired)


async def test_what_is_not_asked_for_is_not_found(filled: Filled) -> None:
    slots = Slots(filled.connection)
    window = Window(start=NOW, end=NOW + HOUR, location_ids=())
    assert await slots.search(SlotSearch(windows=(), now=NOW, limit=9)) == []
    assert await slots.search(SlotSearch(windows=(window,), now=NOW, limit=9, statuses=frozenset())) == []
    assert await slots.search(SlotSearch(windows=(window,), now=NOW, limit=9, doctor_id=new_id())) == []


async def test_where_a_doctor_is(filled: Filled) -> None:
    slots = Slots(filled.connection)
    some = [each.row for each in filled.slots[:50]]
    mine = [each.row for each in filled.slots if each.row["doctor_id"] == some[0]["doctor_id"]]
    between = await slots.locations_between(some[0]["doctor_id"], NOW, NOW + 10 * HOUR)
    assert between == {each["location_id"] for each in mine if NOW <= each["starts_at"] < NOW + 10 * HOUR}
