"""Replay a real day of appointment requests through the public API: `python -m loadtests.replay day.csv --speed 60`.

The requests are those of a CSV (see ``real_day``), made in the order in which they were made then, moved to a day to
come. A patient registers once, with an invented name, logs in, and books the first free slot of that clinic on that
day; where somebody was quicker, or the patient is elsewhere at that time, the next one. The clinics must be there: make
their file with ``loadtests.replay_clinic`` and load it with ``zapis load``. Every run has patients of its own.

Registering so many from one address takes a server without a rate limit: ``ZAPIS_RATE_LIMIT=0``. With a limit the
replay waits as it is told to. Exit code 1: a request was left without an answer.
"""

import argparse
import asyncio
import math
import secrets
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import httpx

from cluster.public_api import Account, Json, PublicApi, Refused, Unanswered, http_client
from loadtests.invented import PATIENTS, person
from loadtests.real_day import BadCsv, Row, moved, next_day, read_rows

LISTINGS_MAX = 10
PAGE_SLOTS = 50
PAGES_MAX = 100
PROGRESS_EVERY_S = 10.0
NO_FREE_SLOT = "no_free_slot"
NO_SUCH_CLINIC = "no_such_clinic"
SHOWN = {
    "POST /v1/auth/register": "register",
    "POST /v1/auth/token": "log in",
    "GET /v1/slots": "find slots",
    "POST /v1/appointments": "book",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path, help="appointment requests")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the zapis [%(default)s]")
    parser.add_argument("--speed", type=float, default=60.0, help="times real time; 0: no pauses [%(default)s]")
    parser.add_argument("--day", type=date.fromisoformat, help="move the first day here [next such weekday]")
    parser.add_argument("--clients", type=int, default=32, help="requests under way at once [%(default)s]")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds until a call is given up [%(default)s]")
    options = parser.parse_args(arguments)
    if not (0 <= options.speed < math.inf and 1 <= options.clients <= 1000 and 1 <= options.patience <= 3600):
        parser.error("--speed is 0 or more, --clients from 1 to 1000, --patience from 1 to 3600")
    try:
        rows = read_rows(options.csv)
    except (BadCsv, OSError) as error:
        parser.error(str(error))
    rows = moved(rows, options.day or next_day(rows, datetime.now(UTC)))
    try:
        summary = asyncio.run(
            replay(rows, url=options.url, speed=options.speed, clients=options.clients, patience_s=options.patience)
        )
    except (Refused, Unanswered, httpx.HTTPError) as error:
        print(f"{options.url}: {error}", file=sys.stderr)
        return 2
    print("\n".join(summary.lines()))
    return 0 if summary.complete else 1


@dataclass(slots=True, kw_only=True)
class Summary:
    """What became of the requests; ``refused`` counts codes, ``calls`` has the seconds of every exchange."""

    first_day: date
    requests: int
    patients: int
    clinics: int
    registered: int = 0
    booked: int = 0
    unanswered: int = 0
    duration_s: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)
    calls: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def complete(self) -> bool:
        """Whether every request was answered: booked and refused add up."""
        return self.unanswered == 0 and self.booked + self.refused.total() == self.requests

    def lines(self) -> list[str]:
        """The summary for people."""
        codes = ", ".join(f"{code} {count}" for code, count in sorted(self.refused.items()))
        rate = self.booked / self.duration_s if self.duration_s else 0.0
        lines = [
            f"requests    {self.requests:7}  {self.patients} patients, {self.clinics} clinics, {self.first_day}",
            f"registered  {self.registered:7}",
            f"booked      {self.booked:7}",
            f"refused     {self.refused.total():7}  {codes}".rstrip(),
            f"unanswered  {self.unanswered:7}",
            f"            {'':7}  booked + refused = {self.booked + self.refused.total()} of {self.requests}",
            f"duration    {self.duration_s:7.1f}  s, {rate:.1f} bookings/s",
            "",
            f"{'call':12}{'times':>7}{'p50 ms':>9}{'p99 ms':>9}",
        ]
        for call, name in SHOWN.items():
            times = sorted(self.calls[call])
            lines.append(f"{name:12}{len(times):7}{percentile_ms(times, 50):>9}{percentile_ms(times, 99):>9}")
        return lines


async def replay(
    rows: Sequence[Row],
    *,
    url: str,
    speed: float,
    clients: int,
    patience_s: float,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Summary:
    """Make these requests in their order, at most ``clients`` at once, and say what became of them.

    Raises:
        Refused, Unanswered: the clinics could not be read. What happens to a request is never raised.
    """
    summary = Summary(
        first_day=min(row.day for row in rows),
        requests=len(rows),
        patients=len({row.patient for row in rows}),
        clinics=len({row.clinic for row in rows}),
    )
    async with http_client(url, connections=clients, transport=transport) as client:
        api = PublicApi(
            client, patience_s=patience_s, observe=lambda call, seconds: summary.calls[call].append(seconds)
        )
        clinics = {location["name"]: location["id"] for location in await api.items("/v1/locations")}
        waiting: asyncio.Queue[tuple[int, Row] | None] = asyncio.Queue(maxsize=clients)
        visitors = _Visitors(api, summary)
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(_work(waiting, visitors, clinics, summary))
            progress = group.create_task(_tell_progress(summary))
            await _hand_out(rows, waiting, speed)
            for _ in range(clients):
                await waiting.put(None)
            progress.cancel()
        summary.duration_s = time.perf_counter() - began
    return summary


async def _hand_out(rows: Sequence[Row], waiting: "asyncio.Queue[tuple[int, Row] | None]", speed: float) -> None:
    """Hand each request out when its time has come, in order; where nobody is free, later."""
    began = time.perf_counter()
    for number, row in enumerate(rows):
        if speed:
            due = began + (row.asked_at - rows[0].asked_at).total_seconds() / speed
            if (pause_s := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause_s)
        await waiting.put((number, row))


async def _work(
    waiting: "asyncio.Queue[tuple[int, Row] | None]",
    visitors: "_Visitors",
    clinics: Mapping[str, str],
    summary: Summary,
) -> None:
    while (handed_out := await waiting.get()) is not None:
        number, row = handed_out
        visitor = visitors.of(row.patient)
        # Nothing is awaited between taking a request and queueing here, and a lock is fair: a patient's requests keep
        # their order.
        async with visitor.turn:
            try:
                code = await visitor.ask(clinics.get(row.clinic), row.day, number)
            except Unanswered as unanswered:
                print(f"request {number + 1}: {unanswered}", file=sys.stderr)
                summary.unanswered += 1
                continue
            except Refused as refused:
                code = refused.code
        if code is None:
            summary.booked += 1
        else:
            summary.refused[code] += 1


class _Visitors:
    """The patients of this run; each is made at the first request."""

    def __init__(self, api: PublicApi, summary: Summary) -> None:
        self._api = api
        self._summary = summary
        self._run = secrets.token_hex(4)
        self._password = f"{secrets.token_urlsafe(18)}-aA1"
        self._visitors: dict[str, _Visitor] = {}

    def of(self, patient: str) -> "_Visitor":
        if patient not in self._visitors:
            number = len(self._visitors)
            login = f"p{self._run}-{number + 1:06}"
            self._visitors[patient] = _Visitor(self._api, self._summary, login, number, self._password)
        return self._visitors[patient]


class _Visitor:
    """One patient; ``turn`` is held while one of its requests is under way."""

    def __init__(self, api: PublicApi, summary: Summary, login: str, number: int, password: str) -> None:
        self.turn = asyncio.Lock()
        self._api = api
        self._summary = summary
        self._person = person(login, number, areas=PATIENTS)
        self._password = password
        self._account: Account | None = None

    async def ask(self, location_id: str | None, day: date, number: int) -> str | None:
        """Book the first free slot there on that day: ``None`` where that was done, else the code of the refusal.

        Raises:
            Refused, Unanswered
        """
        account = await self._registered()
        if location_id is None:
            return NO_SUCH_CLINIC
        elsewhere: set[str] = set()
        for _ in range(LISTINGS_MAX):
            tried = False
            async for slot in self._free_slots(location_id, day):
                if slot["start"] in elsewhere:
                    continue
                tried = True
                try:
                    await account.book(slot["id"], key=f"{self._person.login}-{number}-{slot['id']}")
                    return None
                except Refused as refused:
                    match refused.code:
                        case "slot_taken" | "slot_unavailable":
                            continue
                        case "patient_overlap":
                            elsewhere.add(slot["start"])
                        case _:
                            raise
            if not tried:
                return "patient_overlap" if elsewhere else NO_FREE_SLOT
        return "slot_taken"

    async def _registered(self) -> Account:
        if self._account is None:
            body = {
                "login": self._person.login,
                "password": self._password,
                "name": self._person.name,
                "birth_date": self._person.birth_date.isoformat(),
                "email": self._person.email,
                "phone": self._person.phone,
            }
            try:
                await self._api.call("POST", "/v1/auth/register", json=body)
            except Refused as refused:
                # The login is this run's own, so it is taken by an earlier try whose answer was lost.
                if refused.code != "login_taken":
                    raise
            self._summary.registered += 1
            self._account = Account(self._api, self._person.login, self._password)
        return self._account

    async def _free_slots(self, location_id: str, day: date) -> AsyncIterator[Json]:
        """The free slots as they are listed, a page at a time: most requests need only the first."""
        params = {
            "location_id": location_id,
            "from": day.isoformat(),
            "to": day.isoformat(),
            "status": "free",
            "limit": str(PAGE_SLOTS),
        }
        for _ in range(PAGES_MAX):
            page = (await self._api.call("GET", "/v1/slots", params=params)).body
            for slot in page["items"]:
                yield slot
            if page.get("next_cursor") is None:
                return
            params["cursor"] = page["next_cursor"]


async def _tell_progress(summary: Summary) -> None:
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        print(
            f"{summary.booked} booked, {summary.refused.total()} refused of {summary.requests}",
            file=sys.stderr,
            flush=True,
        )


def percentile_ms(times_s: Sequence[float], percent: int) -> str:
    """By the nearest rank, of sorted times; a dash where there are none."""
    if not times_s:
        return "-"
    return f"{times_s[math.ceil(len(times_s) * percent / 100) - 1] * 1000:.1f}"


if __name__ == "__main__":
    sys.exit(main())
