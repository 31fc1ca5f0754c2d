"""A replay over the real application: every request is answered, in the order of each patient's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from cluster.clinic import parse
from cluster.loader import load
from cluster.public_api import Account, PublicApi
from cluster.settings import Settings
from loadtests.real_day import Row
from loadtests.replay import Summary, replay
from loadtests.replay_clinic import clinic_yaml
from tests.integration.application import Application, running

ADMIN, ADMIN_PASSWORD = "admin", "Admin-Horse-9"
NOW = datetime.now(UTC)
DAY = NOW.date() + timedelta(days=7)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Application]:
    changed = {"rate_limit": 0, "admin_login": ADMIN, "admin_password": ADMIN_PASSWORD}
    async with running(settings.model_copy(update=changed)) as application:
        yield application


def rows(*requests: tuple[str, str]) -> list[Row]:
    return [
        Row(patient=patient, asked_at=NOW + timedelta(seconds=number), day=DAY, clinic=clinic)
        for number, (patient, clinic) in enumerate(requests)
    ]


async def replayed(
    api: Application, supplied: list[Row], asked: list[Row], *, clients: int = 8, speed: float = 0
) -> Summary:
    """Load what the supplied requests need, then make those that are asked."""
    transport = httpx.ASGITransport(api.app)
    today = NOW.date()
    clinic = parse(clinic_yaml(supplied, publish_days=14).encode(), source="day.yaml", today=today)
    loaded = await load(
        clinic,
        url="http://zapis.test",
        admin_login=ADMIN,
        admin_password=ADMIN_PASSWORD,
        account_password="Every-Account-7",
        transport=transport,
    )
    assert loaded.refused == []
    return await replay(
        asked, url="http://zapis.test", speed=speed, clients=clients, patience_s=60, transport=transport
    )


async def test_everyone_gets_an_answer(api: Application) -> None:
    supplied = rows(*[(f"p{number}", "A") for number in range(30)])
    asked = rows(*[(f"p{number}", "A") for number in range(34)], ("p1", "Nowhere"))

    summary = await replayed(api, supplied, asked)

    assert (summary.registered, summary.booked, summary.unanswered) == (34, 30, 0)
    assert summary.refused == {"no_free_slot": 4, "no_such_clinic": 1}
    assert summary.complete
    assert len(summary.calls["POST /v1/auth/register"]) == 34


async def test_a_patients_requests_keep_their_order_and_never_overlap(api: Application) -> None:
    asked = rows(*[(f"p{number % 5}", "A" if number % 2 else "B") for number in range(30)])

    summary = await replayed(api, asked, asked, speed=1000)

    admin = Account(PublicApi(api.http), ADMIN, ADMIN_PASSWORD)
    visits = await admin.items("/v1/appointments")
    assert (summary.registered, summary.booked + summary.refused.total()) == (5, 30)
    assert len(visits) == summary.booked
    for patient_id in {visit["patient_id"] for visit in visits}:
        own = [visit for visit in visits if visit["patient_id"] == patient_id]
        assert len({visit["start"] for visit in own}) == len(own)
        for location_id in {visit["location_id"] for visit in own}:
            there = [visit for visit in own if visit["location_id"] == location_id]
            there.sort(key=lambda visit: str(visit["created_at"]))
            # Nobody cancels, so at one clinic a request never gets an earlier time than the one before it.
            assert [visit["start"] for visit in there] == sorted(visit["start"] for visit in there)


async def test_a_patient_who_is_elsewhere_takes_the_next_time(api: Application) -> None:
    asked = rows(("p1", "A"), ("p1", "B"))

    summary = await replayed(api, rows(*[("x", "A")] * 3, *[("y", "B")] * 3), asked)

    starts = [
        visit["start"] for visit in await Account(PublicApi(api.http), ADMIN, ADMIN_PASSWORD).items("/v1/appointments")
    ]
    assert summary.booked == 2
    assert len(set(starts)) == 2


async def test_a_server_that_goes_away_leaves_requests_unanswered(api: Application) -> None:
    asked = rows(*[(f"p{number}", "A") for number in range(3)])
    through = httpx.ASGITransport(api.app)

    async def only_reading(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return await through.handle_async_request(request)
        raise httpx.ReadError("gone")

    summary = await replay(
        asked, url="http://zapis.test", speed=0, clients=2, patience_s=1, transport=httpx.MockTransport(only_reading)
    )

    assert (summary.unanswered, summary.booked, summary.complete) == (3, 0, False)
