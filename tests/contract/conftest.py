"""The journals that keep the contract: one in memory, one in PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Protocol

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from actors.journal import Journal
from cluster.embedded import EmbeddedPostgres
from persistence.journal import PostgresJournal
from tests.contract.owner import Owner
from tests.fakes.memory_journal import MemoryDatabase

LIVE_APPOINTMENTS_MAX = 3
HOLDS_MAX = 2

TABLES = (
    *("calendar", "placement", "event", "command", "slot", "hold"),
    *("appointment", "move", "closure", "outbox", "audit", "patient"),
)

Row = dict[str, Any]


class World(Protocol):
    """A database, the journals on it, and what can be read there."""

    def journal(self, *, live_appointments_max: int = LIVE_APPOINTMENTS_MAX, holds_max: int = HOLDS_MAX) -> Journal:
        """One more journal on the database."""
        ...

    def add_doctor(self, doctor_id: str) -> None:
        """A doctor with an empty calendar."""
        ...

    def add_erased(self, patient_id: str) -> None:
        """A patient who was erased."""
        ...

    def place(self, generation: int) -> None:
        """The placement is at this generation from now on."""
        ...

    def calendar(self, doctor_id: str) -> tuple[int, int, datetime | None]:
        """Epoch, sequence and the time of the last event."""
        ...

    def events(self, doctor_id: str) -> list[tuple[int, str, int]]:
        """Number, kind and epoch of the events, in order."""
        ...

    def moves(self) -> dict[str, str]:
        """The moves' states."""
        ...

    def appointments(self) -> dict[str, tuple[str, str, str, int, bool]]:
        """Doctor, slot, status, version and whether it is displaced, by id."""
        ...

    def nothing(self) -> bool:
        """Whether no row was ever written by a batch."""
        ...


class MemoryWorld:
    """See ``World``."""

    def __init__(self) -> None:
        self.database = MemoryDatabase()

    def journal(self, *, live_appointments_max: int = LIVE_APPOINTMENTS_MAX, holds_max: int = HOLDS_MAX) -> Journal:
        self.database.live_appointments_max = live_appointments_max
        self.database.holds_max = holds_max
        return self.database.open()

    def add_doctor(self, doctor_id: str) -> None:
        self.database.add_doctor(doctor_id)

    def add_erased(self, patient_id: str) -> None:
        self.database.erased.add(patient_id)

    def place(self, generation: int) -> None:
        self.database.place(generation)

    def calendar(self, doctor_id: str) -> tuple[int, int, datetime | None]:
        state = self.database.tables.calendar[doctor_id]
        return state.epoch, state.sequence, state.last_event_at

    def events(self, doctor_id: str) -> list[tuple[int, str, int]]:
        return [
            (number, type(row.event).__name__, row.epoch)
            for (owner, number), row in sorted(self.database.tables.event.items())
            if owner == doctor_id
        ]

    def moves(self) -> dict[str, str]:
        return {row["id"]: row["state"] for row in self.database.tables.move.values()}

    def appointments(self) -> dict[str, tuple[str, str, str, int, bool]]:
        return {
            row["id"]: (row["doctor_id"], row["slot_id"], row["status"], row["version"], row["displaced"])
            for row in self.database.tables.appointment.values()
        }

    def nothing(self) -> bool:
        tables = self.database.tables
        return not (tables.event or tables.command or tables.slot or tables.hold or tables.appointment or tables.move)


class PostgresWorld:
    """See ``World``."""

    def __init__(self, database_url: str) -> None:
        self.database_url = database_url
        self.connection = psycopg.connect(database_url, autocommit=True, row_factory=dict_row)
        self.connection.execute("SET timezone = 'UTC'")
        self.journals: list[PostgresJournal] = []

    def journal(
        self, *, live_appointments_max: int = LIVE_APPOINTMENTS_MAX, holds_max: int = HOLDS_MAX
    ) -> PostgresJournal:
        journal = PostgresJournal(
            database_url=self.database_url, live_appointments_max=live_appointments_max, holds_max=holds_max
        )
        self.journals.append(journal)
        return journal

    async def close(self) -> None:
        for journal in self.journals:
            await journal.close()
        self.connection.close()

    def rows(self, query: str, **values: Any) -> list[Row]:
        """What a query finds."""
        return self.connection.execute(query.encode(), values).fetchall()

    def add_doctor(self, doctor_id: str) -> None:
        self.connection.execute("INSERT INTO calendar (doctor_id) VALUES (%s)", (doctor_id,))

    def add_erased(self, patient_id: str) -> None:
        self.connection.execute("INSERT INTO patient (id, search) VALUES (%s, '{}')", (patient_id,))

    def place(self, generation: int) -> None:
        self.connection.execute("DELETE FROM placement")
        self.connection.execute(
            "INSERT INTO placement (generation, mode, actors) VALUES (%s, 'shared', 1)", (generation,)
        )

    def calendar(self, doctor_id: str) -> tuple[int, int, datetime | None]:
        (row,) = self.rows(
            "SELECT epoch, sequence, last_event_at FROM calendar WHERE doctor_id = %(doctor)s", doctor=doctor_id
        )
        return row["epoch"], row["sequence"], row["last_event_at"]

    def events(self, doctor_id: str) -> list[tuple[int, str, int]]:
        query = "SELECT sequence, kind, epoch FROM event WHERE doctor_id = %(doctor)s ORDER BY sequence"
        return [(row["sequence"], row["kind"], row["epoch"]) for row in self.rows(query, doctor=doctor_id)]

    def moves(self) -> dict[str, str]:
        return {row["id"]: row["state"] for row in self.rows("SELECT id::text, state FROM move")}

    def appointments(self) -> dict[str, tuple[str, str, str, int, bool]]:
        query = "SELECT id::text, doctor_id::text, slot_id::text, status, version, displaced FROM appointment"
        return {
            row["id"]: (row["doctor_id"], row["slot_id"], row["status"], row["version"], row["displaced"])
            for row in self.rows(query)
        }

    def nothing(self) -> bool:
        written = set(TABLES) - {"calendar", "placement", "patient"}
        return not any(self.rows(f"SELECT 1 FROM {table} LIMIT 1") for table in written)


@pytest.fixture(scope="session")
def suite_database_url(postgres: EmbeddedPostgres, template_database: str) -> str:
    """A database of this suite's own. Cloning one for each test would take longer than the tests."""
    with psycopg.connect(postgres.superuser_url, autocommit=True) as connection:
        clone = sql.SQL("CREATE DATABASE journal_contract OWNER zapis TEMPLATE {}")
        connection.execute(clone.format(sql.Identifier(template_database)))
    return postgres.url_of("journal_contract")


@pytest.fixture
async def postgres_world(suite_database_url: str) -> AsyncIterator[PostgresWorld]:
    """PostgreSQL alone, emptied, for what only it can do."""
    world = PostgresWorld(suite_database_url)
    for table in TABLES:
        world.connection.execute(f"DELETE FROM {table}".encode())
    yield world
    await world.close()


@pytest.fixture(params=["memory", "postgres"])
def world(request: pytest.FixtureRequest) -> World:
    """Each database in turn."""
    return MemoryWorld() if request.param == "memory" else request.getfixturevalue("postgres_world")


@pytest.fixture
def owner(world: World) -> Owner:
    """One who owns nothing yet."""
    return Owner(world.journal())
