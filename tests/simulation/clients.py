"""Clients of a run, and the API servers they ask: scripts are followed and every operation is written down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

from actors.client import CalendarClient, ClientLimits, Placement
from actors.messages import (
    AppointmentState,
    BlockSlot,
    BookAppointment,
    CancelAppointment,
    CloseCalendar,
    Done,
    ExpireHolds,
    HoldSlot,
    NotDecided,
    Pending,
    RefusedFor,
    Rejected,
    ReleaseHold,
    RemoveClosure,
    Reply,
    Requester,
    RescheduleAppointment,
    ReserveForMove,
    Role,
    UnblockSlot,
    Window,
)
from cluster.moves import _MOVE, MoveDriver
from tests.clinic import slot, slot_id
from tests.given import as_json, uid
from tests.simulation.history import Operation
from tests.simulation.plan import BY_STAFF, BY_SYSTEM, Client, Request
from tests.simulation.servers import Servers, SimulatedActors

DEADLINE_S = 10.0
PROBES_MAX = 20
FOLLOWED_MAX = 3
"""How often an API server goes after a visit that has gone to another calendar."""


class ApiServer:
    """What stands between clients and calendars: one ``CalendarClient`` and the driver of moves."""

    def __init__(self, servers: Servers, number: int) -> None:
        self.servers = servers
        self.calendars = CalendarClient(
            actors=SimulatedActors(servers, number),
            read_placement=self._read_placement,
            limits=ClientLimits(),
            clock=servers.wall,
        )
        self.moves = SimulatedMoveDriver(servers, self.calendars)

    async def _read_placement(self) -> Placement:
        await self.servers.travel()
        return self.servers.placement

    async def follow(self, visit_id: str, send: Callable[[str], Awaitable[Reply]]) -> Reply | None:
        """The reply of the calendar that has the visit, as ``api.scheduling`` finds it; ``None`` if there is none."""
        reply: Reply | None = None
        table = self.servers.database
        for _ in range(FOLLOWED_MAX):
            await self.servers.travel()
            row = table.tables.appointment.get(visit_id)
            if row is None:
                return None
            if row["open_move_id"] is not None:
                await self.moves.drive_on(row["open_move_id"])
            reply = await send(row["doctor_id"])
            if not isinstance(reply, Rejected) or reply.code != "not_live":
                return reply
            now = table.tables.appointment[visit_id]
            if now["doctor_id"] == row["doctor_id"] and now["open_move_id"] is None:
                return reply
        # Gone on each time: nobody knows yet what will be.
        return NotDecided(why=RefusedFor.UNAVAILABLE)

    async def sweep(self) -> None:
        """Drive on every move that is open or pending, as the supervisor does."""
        await self.servers.travel()
        moves = self.servers.database.tables.move
        left = [move_id for move_id, row in moves.items() if row["state"] in ("reserved", "moved", "aborted")]
        for move_id in [*left, *sorted(self.moves.pending())]:
            await self.moves.drive_on(move_id)


class SimulatedMoveDriver(MoveDriver):
    """The real driver, reading the tables of the run."""

    def __init__(self, servers: Servers, calendars: CalendarClient) -> None:
        database: Any = None
        super().__init__(database=database, calendars=calendars, deadline_s=DEADLINE_S)
        self._servers = servers

    async def _read(self, statement: Any, move_id: str) -> Any:
        await self._servers.travel()
        tables = self._servers.database.tables
        if statement is _MOVE:
            move = tables.move.get(move_id)
            return None if move is None else SimpleNamespace(**move | {"request": as_json(move["request"])})
        for row in tables.appointment.values():
            if row["open_move_id"] == move_id:
                renamed = row | {"start": row["starts_at"], "end": row["ends_at"]}
                return SimpleNamespace(_mapping={each.name: renamed[each.name] for each in fields(AppointmentState)})
        return None

    def _own(self, doctor_id: str) -> dict[str, Any]:
        command_id = self._servers.new_id("driver")
        requester = Requester(user_id=command_id, role=Role.ADMIN)
        return super()._own(doctor_id) | {"command_id": command_id, "requester": requester}

    def _now(self) -> datetime:  # type: ignore[override]  # Here it depends on the run.
        return self._servers.wall()


class Clients:
    """Everybody who asks, and the history of what they asked and were told."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.apis = [ApiServer(servers, number) for number in range(2)]
        self.history: list[Operation] = []
        self.undecided: list[str] = []
        """Requests that were answered with nothing."""
        self._requests: dict[str, Request] = {}
        self._holds: dict[str, str] = {}
        """Ids of the holds that were made to be booked, by request."""
        self._moment = 0

    async def follow_script(self, client: Client) -> None:
        """One client's requests, one after another."""
        for request in client.requests:
            self._requests[request.name] = request
            await asyncio.sleep(request.pause_s)
            both = [self._pursue(request, client.server)]
            if request.also_by is not None:
                both.append(self._pursue(request, request.also_by))
            await asyncio.gather(*both)

    async def _pursue(self, request: Request, server: int) -> None:
        """Send it until there is an answer, or patience or sends have run out."""
        try:
            async with asyncio.timeout(request.patience_s):
                for _ in range(request.sends):
                    if isinstance(await self._ask(request, self.apis[server]), Done | Rejected):
                        return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            self.servers.note(request.who, "{} is given up", request.name)

    async def _ask(self, request: Request, api: ApiServer) -> Reply | None:
        if request.kind == "sweep":
            await api.sweep()
            return Done(answer={})
        if request.kind == "expire":
            return await api.calendars.send(ExpireHolds(**self._header(request, "expire"), doctor_id=request.doctor))
        if request.kind == "again":
            asked = self._requests.get(request.about)
            return None if asked is None else await self._ask(asked, api)
        if request.kind == "book" and request.hold_first and request.name not in self._holds:
            held = await self._operate(request, api, "hold")
            if not isinstance(held, Done):
                return held
            self._holds[request.name] = held.answer["hold"]["id"]
        return await self._operate(request, api, request.kind)

    async def _operate(self, request: Request, api: ApiServer, kind: str) -> Reply | None:
        """One operation, from asking to being told."""
        header = self._header(request, kind)
        said: dict[str, Any] = {
            "command_id": header["command_id"],
            "kind": kind,
            "user_id": uid(request.who),
            "slot_id": slot_id(request.doctor, request.slot),
            "doctor_id": request.doctor,
            "appointment_id": visit_of(request.about or request.name),
            "hold_id": self._holds.get(request.name),
            "closure_id": closure_of(request.name),
            "invoked": self._now(),
            "invoked_at": self.servers.wall(),
            "known_before": self._committed(),
        }
        if kind == "release":
            said |= {"hold_id": hold_of(request.about), "doctor_id": self._doctor_of(request)}
        elif kind == "reopen":
            said |= {"closure_id": closure_of(request.about), "doctor_id": self._doctor_of(request)}
        self.servers.note(request.who, "asks {}: {}", request.name, kind)
        try:
            reply = await self._send(kind, header, said, request, api)
        except asyncio.CancelledError:
            self.history.append(Operation(**said, outcome="info"))
            raise
        if isinstance(reply, NotDecided):
            self.undecided.append(request.name)
        if reply is not None:
            self.servers.note(request.who, "is told {}: {}", request.name, reply)
            told: dict[str, Any] = {
                "returned": self._now(),
                "returned_at": self.servers.wall(),
                "known_after": self._committed(),
            }
            self.history.append(Operation(**said, **_told(reply), **told))
        return reply

    async def _send(
        self, kind: str, header: dict[str, Any], said: Mapping[str, Any], request: Request, api: ApiServer
    ) -> Reply | None:
        doctor, wanted_id, visit = said["doctor_id"], said["slot_id"], said["appointment_id"]

        async def move(doctor_id: str) -> Reply:
            if doctor_id == doctor:
                command = RescheduleAppointment(**header, doctor_id=doctor, appointment_id=visit, slot_id=wanted_id)
                return await api.calendars.send(command)
            return await api.moves.move(
                ReserveForMove(
                    **header,
                    doctor_id=doctor,
                    move_id=move_of(request.name),
                    slot_id=wanted_id,
                    appointment_id=visit,
                    source_doctor_id=doctor_id,
                )
            )

        async def cancel(doctor_id: str) -> Reply:
            return await api.calendars.send(CancelAppointment(**header, doctor_id=doctor_id, appointment_id=visit))

        match kind:
            case "hold":
                hold = HoldSlot(**header, doctor_id=doctor, hold_id=hold_of(request.name), slot_id=wanted_id)
                return await api.calendars.send(hold)
            case "release":
                return await api.calendars.send(ReleaseHold(**header, doctor_id=doctor, hold_id=said["hold_id"]))
            case "book":
                return await api.calendars.send(
                    BookAppointment(
                        **header,
                        doctor_id=doctor,
                        appointment_id=visit,
                        slot_id=wanted_id,
                        patient_id=said["user_id"],
                        hold_id=said["hold_id"],
                    )
                )
            case "close":
                wanted = slot(doctor, request.slot)
                windows = (Window(start=wanted.start, end=wanted.end),)
                return await api.calendars.send(
                    CloseCalendar(**header, doctor_id=doctor, closure_id=said["closure_id"], windows=windows)
                )
            case "reopen":
                closure_id = said["closure_id"]
                return await api.calendars.send(RemoveClosure(**header, doctor_id=doctor, closure_id=closure_id))
            case "block":
                return await api.calendars.send(BlockSlot(**header, doctor_id=doctor, slot_id=said["slot_id"]))
            case "unblock":
                return await api.calendars.send(UnblockSlot(**header, doctor_id=doctor, slot_id=said["slot_id"]))
            case "move":
                return await api.follow(visit, move)
            case "cancel":
                return await api.follow(visit, cancel)
            case _:
                raise ValueError(kind)

    async def probe(self, doctor_id: str) -> bool:
        """Whether a calendar still decides: it is asked for what cannot be, a few times."""
        for _ in range(PROBES_MAX):
            command = ReleaseHold(
                command_id=self.servers.new_id("probe"),
                doctor_id=doctor_id,
                requester=Requester(user_id=uid("nobody"), role=Role.PATIENT),
                fingerprint="probe",
                deadline=self.servers.wall() + timedelta(seconds=DEADLINE_S),
                hold_id=uid("no such hold"),
            )
            if isinstance(await self.apis[0].calendars.send(command), Rejected):
                return True
        return False

    def _header(self, request: Request, kind: str) -> dict[str, Any]:
        suffix = "" if kind == request.kind else f"/{kind}"
        staff = kind in BY_STAFF or kind in BY_SYSTEM
        return {
            "command_id": uid(f"command {request.name}{suffix}"),
            "requester": Requester(user_id=uid(request.who), role=Role.ADMIN if staff else Role.PATIENT),
            "fingerprint": f"{kind} {request.name}",
            "deadline": self.servers.wall() + timedelta(seconds=DEADLINE_S),
            "respond_async": request.respond_async,
        }

    def _doctor_of(self, request: Request) -> str:
        asked = self._requests.get(request.about)
        return request.doctor if asked is None else asked.doctor

    def _committed(self) -> dict[str, int]:
        return {doctor_id: state.sequence for doctor_id, state in self.servers.database.tables.calendar.items()}

    def _now(self) -> int:
        self._moment += 1
        return self._moment


def visit_of(name: str) -> str:
    """The id of the visit that a request books."""
    return uid(f"visit of {name}")


def hold_of(name: str) -> str:
    """The id of the hold that a request makes."""
    return uid(f"hold of {name}")


def closure_of(name: str) -> str:
    """The id of the closure that a request enters."""
    return uid(f"closure of {name}")


def move_of(name: str) -> str:
    """The id of the move that a request begins."""
    return uid(f"move of {name}")


def _told(reply: Reply) -> dict[str, Any]:
    match reply:
        case Done(answer=answer):
            return {"outcome": "ok", "answer": as_json(answer)}
        case Rejected(code=code):
            return {"outcome": "fail", "code": code}
        case Pending() | NotDecided():
            return {"outcome": "info"}
