"""What a search costs that was answered before: `python -m loadtests.search`, or `make search`.

This server and an endpoint that returns the same bytes from memory (``loadtests.peers.same_bytes``) take turns. One
doctor after the other is searched for free slots of the next two weeks; all of these answers are known. Nobody books,
then visits are booked all the while: each ends the answers about one doctor. Exit code 1: an answer was not 200, or
this server answered less than ``SHARE_MIN`` of what the endpoint did while nobody booked.

How long searches take that are not known is measured at ten thousand doctors: see ``loadtests.scale``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.table import Table

from loadtests.fixture import Account, Clinic, add_accounts, add_clinic, booking_request, copy_slots, slot_starts
from loadtests.generator import Outcome, drive, generator_name
from loadtests.peers.same_bytes import ANSWER
from loadtests.servers import WebServer, run, running_servers

DOCTORS = 20
DAYS = 20
SLOTS_A_DAY = 16
SLOT_MINUTES = 30
PATIENTS = 997
CONNECTIONS = 64
RATE_MAX = 30_000
"""No round needs more requests a second than this."""
BOOKINGS_A_SECOND = 50
SHARE_MIN = 0.6
OURS, PEER, BOOKED = "zapis", "the same bytes from memory", "zapis, while visits are booked"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each [%(default)s]")
    parser.add_argument("--seconds", type=int, default=4, help="length of a round [%(default)s]")
    options = parser.parse_args(arguments)
    if not (1 <= options.rounds <= 20 and 1 <= options.seconds <= 60):
        parser.error("--rounds is from 1 to 20, --seconds from 1 to 60")
    return run(search(options.rounds, options.seconds))


async def search(rounds: int, seconds: int) -> int:
    """The whole measurement; returns the exit code."""
    outcomes: dict[str, list[Outcome]] = {OURS: [], PEER: [], BOOKED: []}
    async with running_servers("search") as servers:
        settings = servers.settings(await servers.create_database("search"), data_dir=servers.data.path)
        accounts = await add_accounts(settings, PATIENTS)
        clinic = await add_clinic(settings, DOCTORS)
        by_start = await copy_slots(settings, clinic, slot_starts(DAYS, SLOTS_A_DAY, SLOT_MINUTES), SLOT_MINUTES)
        async with servers.zapis(settings) as ours:
            body = await _answer(ours, clinic)
            (servers.data.path / ANSWER).write_bytes(body)
            async with servers.peer("loadtests.peers.same_bytes:create_app", settings) as peer:
                for _ in range(rounds):
                    for name, server in ((OURS, ours), (PEER, peer)):
                        outcomes[name].append(await _round(server, clinic, seconds))
            slot_ids = [slot_id for same_start in by_start for slot_id in same_start]
            booking = asyncio.create_task(_book(ours, accounts, slot_ids))
            try:
                for _ in range(rounds):
                    outcomes[BOOKED].append(await _round(ours, clinic, seconds))
                assert not booking.done(), "there are enough slots"
            finally:
                booking.cancel()
                await asyncio.wait({booking})
    _print(outcomes, len(body), seconds)
    wrong = sum(each.others + each.unavailable + each.failed for rounds_ in outcomes.values() for each in rounds_)
    share = _rate(outcomes[OURS]) / _rate(outcomes[PEER])
    if wrong:
        print(f"{wrong} answers were not 200")
    return 0 if share >= SHARE_MIN and not wrong else 1


async def _answer(server: WebServer, clinic: Clinic) -> bytes:
    """One of the answers; all are alike."""
    async with httpx.AsyncClient(base_url=server.url, timeout=30.0) as client:
        answer = await client.get("/v1/slots", params={"doctor_id": clinic.doctor_ids[0]})
        answer.raise_for_status()
        return answer.content


async def _round(server: WebServer, clinic: Clinic, seconds: int) -> Outcome:
    host = urlsplit(server.url).netloc
    requests = [
        f"GET /v1/slots?doctor_id={doctor_id} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        for doctor_id in clinic.doctor_ids
    ]
    await drive(server.url, requests * (RATE_MAX // DOCTORS), connections=CONNECTIONS, seconds=1)
    return await drive(server.url, requests * (RATE_MAX * seconds // DOCTORS), connections=CONNECTIONS, seconds=seconds)


async def _book(server: WebServer, accounts: Sequence[Account], slot_ids: Sequence[str]) -> None:
    """Book one after the other, so many a second."""
    parts = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        for number, slot_id in enumerate(slot_ids):
            writer.write(booking_request(server.url, "/v1/appointments", accounts[number % len(accounts)], slot_id))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 201"), head
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            await asyncio.sleep(max(0.0, began + number / BOOKINGS_A_SECOND - loop.time()))
    finally:
        writer.close()


def _rate(rounds: Sequence[Outcome]) -> float:
    return statistics.median(each.rate for each in rounds)


def _print(outcomes: dict[str, list[Outcome]], answer_bytes: int, seconds: int) -> None:
    table = Table(title=f"{os.cpu_count()} cores, {CONNECTIONS} connections, load by {generator_name()}")
    for name in ("", "searches a second", "from, to", "of the endpoint", "p50 ms", "p99 ms"):
        table.add_column(name, justify="left" if not name else "right")
    for name, rounds in outcomes.items():
        rates = [each.rate for each in rounds]
        table.add_row(
            name,
            f"{_rate(rounds):,.0f}",
            f"{min(rates):,.0f}, {max(rates):,.0f}",
            f"{_rate(rounds) / _rate(outcomes[PEER]):.2f}",
            f"{statistics.median(each.p50_ms for each in rounds):.1f}",
            f"{statistics.median(each.p99_ms for each in rounds):.1f}",
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        f"Medians of {len(outcomes[OURS])} rounds of {seconds} s; an answer has {answer_bytes:,} bytes."
        f" {BOOKINGS_A_SECOND} bookings a second in the last row. At least {SHARE_MIN} of the endpoint are asked for."
    )


if __name__ == "__main__":
    raise SystemExit(main())
