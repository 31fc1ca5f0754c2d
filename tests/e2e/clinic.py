"""A clinic that runs in processes of its own, spoken to over real HTTP by many clients at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import httpx
import psycopg

from actors.availability import Weekday
from cluster.settings import Settings
from persistence.verify import verify
from tests.people import People, Person, open_people
from tests.serving import Serving

LONG: Final = os.environ.get("FAULTS") == "long"
"""Whether there is time for more of everything: ``make faults``, not every change."""
CLIENTS_MAX: Final = 100
TIMEOUT_S: Final = 60.0
JSON = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that runs, and the settings it runs with."""

    serving: Serving
    settings: Settings

    @property
    def database_url(self) -> str:
        """Where its truth is."""
        assert self.settings.database_url is not None
        return self.settings.database_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Clinic:
    """A location of a server's, and everybody there."""

    server: Server
    http: httpx.AsyncClient
    people: People
    admin: Person
    location_id: str

    async def post(self, who: Person, path: str, body: Any = None, *, key: str | None = None) -> httpx.Response:
        """What someone's command is answered with, perhaps under a key."""
        return await self.http.post(path, json=body, headers=who.headers | _named(key))

    async def post_at_once(
        self, commands: Sequence[tuple[Person, str, Any]], *, key: str | None = None
    ) -> list[httpx.Response]:
        """What each of these is answered with: all are sent at the same moment, each on a connection of its own.

        Connected and encoded beforehand, so that the server, and not this client, is what they wait for.
        """
        requests = [
            self.http.build_request("POST", path, json=body, headers=who.headers | _named(key))
            for who, path, body in commands
        ]
        url = self.http.base_url
        connections = [await asyncio.open_connection(url.host, url.port) for _ in requests]
        try:
            for (_, writer), request in zip(connections, requests, strict=True):
                writer.write(_encoded(request))
            async with asyncio.timeout(TIMEOUT_S):
                return await asyncio.gather(*(_answer(reader) for reader, _ in connections))
        finally:
            for _, writer in connections:
                writer.close()

    async def doctor_with_slots(
        self, count: int, *, minutes: int = 5, start: str = "00:00"
    ) -> tuple[Person, list[str]]:
        """A doctor with so many slots, end to end, on ``a_day()``."""
        doctor = await self.people.doctor(self.location_id)
        day = a_day()
        rule = {"weekday": Weekday.of(day), "start": start, "slot_minutes": minutes, "slots": count}
        template = {"name": "Days", "location_id": self.location_id, "valid_from": day.isoformat(), "rules": [rule]}
        path = f"/v1/admin/doctors/{doctor.doctor_id}"
        made = await self.post(self.admin, f"{path}/templates", template)
        assert made.status_code == 201, made.text
        days = {"from": day.isoformat(), "to": day.isoformat()}
        published = await self.post(self.admin, f"{path}/publish", days)
        assert published.json()["opened"] == count, published.text
        slots = await self.everything("/v1/slots", doctor_id=doctor.doctor_id)
        assert len(slots) == count
        return doctor, [slot["id"] for slot in slots]

    async def everything(self, path: str, **params: str) -> list[JSON]:
        """All pages of a list, as the administrator sees them."""
        items: list[JSON] = []
        cursor: dict[str, str] = {}
        while True:
            query = {"limit": "200"} | params | cursor
            answer = await self.http.get(path, params=query, headers=self.admin.headers)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            items += page["items"]
            if page["next_cursor"] is None:
                return items
            cursor = {"cursor": page["next_cursor"]}

    async def visits(self, doctors: list[Person]) -> dict[str, JSON]:
        """Every visit with these doctors by its id, without what only staff are told of it."""
        return {
            visit["id"]: {name: value for name, value in visit.items() if name != "patient"}
            for doctor in doctors
            for visit in await self.everything("/v1/appointments", doctor_id=doctor.doctor_id)
        }

    async def check_journal(self) -> None:
        """``zapis verify`` finds nothing, and every calendar's events are numbered 1, 2, 3 …"""
        report = await verify(self.server.database_url)
        assert report.differences == []
        with psycopg.connect(self.server.database_url) as connection:
            gaps = connection.execute(
                "SELECT doctor_id FROM event GROUP BY doctor_id"
                " HAVING min(sequence) <> 1 OR max(sequence) <> count(*) OR count(DISTINCT sequence) <> count(*)"
            ).fetchall()
            doubled = connection.execute(
                "SELECT one.id FROM appointment AS one JOIN appointment AS other ON one.id < other.id"
                " AND one.live AND other.live AND one.starts_at < other.ends_at AND other.starts_at < one.ends_at"
                " AND (one.doctor_id = other.doctor_id OR one.patient_id = other.patient_id)"
            ).fetchall()
        assert gaps == []
        assert doubled == []


@asynccontextmanager
async def open_clinic(server: Server) -> AsyncIterator[Clinic]:
    """A new location on a server, for as long as the block lasts."""
    limits = httpx.Limits(max_connections=CLIENTS_MAX, max_keepalive_connections=CLIENTS_MAX)
    async with (
        open_people(server.settings) as people,
        httpx.AsyncClient(base_url=server.serving.url, limits=limits, timeout=TIMEOUT_S, trust_env=False) as http,
    ):
        admin = await people.admin()
        body = {"name": "Clinic at the park", "address": "Parkstrasse 1", "timezone": "Europe/Berlin"}
        made = await http.post("/v1/admin/locations", json=body, headers=admin.headers)
        assert made.status_code == 201, made.text
        yield Clinic(server=server, http=http, people=people, admin=admin, location_id=made.json()["id"])


def _named(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


def _encoded(request: httpx.Request) -> bytes:
    """A request as it goes over the wire (RFC 9112)."""
    head = b"%s %s HTTP/1.1\r\n" % (request.method.encode(), request.url.raw_path)
    return head + b"".join(b"%s: %s\r\n" % header for header in request.headers.raw) + b"\r\n" + request.content


async def _answer(reader: asyncio.StreamReader) -> httpx.Response:
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    length = int(httpx.Headers(headers)["content-length"])
    return httpx.Response(int(status.split()[1]), headers=headers, content=await reader.readexactly(length))


def a_day() -> date:
    """When all visits are: far enough from now, and on no day that a clock is changed."""
    day = datetime.now(UTC).date() + timedelta(days=3)
    return day if day.month not in (3, 10) or day.day < 24 else day + timedelta(days=8)
