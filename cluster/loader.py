"""Loading a clinic into a running zapis through its public API, by the same commands as everyone else.

Loading again adds only what is not there, whether the first time went through or ended half-way. What is there is
known by its name: locations, services, a doctor's schedules and a patient's children by their names, accounts by their
logins, and a visit by who visits whom. It is kept as it is, even where the file now says something else.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import httpx

from actors.availability import Template
from cluster.clinic_parts import Child, Clinic, Doctor, Patient, Service, Visit
from cluster.public_api import PATIENCE_S, Account, Json, PublicApi, Refused, Unanswered, http_client
from cluster.settings import OperatorError

CONCURRENCY = 8
CONNECT_PATIENCE_S = 20.0
SLOT_TRIES_MAX = 10
MAKE_TRIES_MAX = 5

_T = TypeVar("_T")


class LoadFailed(OperatorError):
    """The clinic could not be loaded to its end. Loading it again goes on from there."""


@dataclass(slots=True, kw_only=True)
class Count:
    made: int = 0
    kept: int = 0

    def add(self, *, made: bool) -> None:
        if made:
            self.made += 1
        else:
            self.kept += 1


@dataclass(slots=True, kw_only=True)
class LoadReport:
    """What was made and what was there already.

    ``skipped`` counts slots that were not opened, by the reason; ``refused`` says what could not be done, a line each.
    """

    locations: Count = field(default_factory=Count)
    services: Count = field(default_factory=Count)
    doctors: Count = field(default_factory=Count)
    schedules: Count = field(default_factory=Count)
    slots: Count = field(default_factory=Count)
    skipped: Counter[str] = field(default_factory=Counter)
    patients: Count = field(default_factory=Count)
    children: Count = field(default_factory=Count)
    visits: Count = field(default_factory=Count)
    refused: list[str] = field(default_factory=list)

    @property
    def made(self) -> int:
        """How many things were made; 0 when all were there."""
        return sum(count.made for _, count in self._counts())

    def lines(self) -> list[str]:
        """The report for people."""
        lines = [f"{name:9} {count.made:6} made {count.kept:6} kept" for name, count in self._counts()]
        if self.skipped:
            whys = ", ".join(f"{why} {count}" for why, count in sorted(self.skipped.items()))
            lines.append(f"slots     {self.skipped.total():6} skipped: {whys}")
        return lines + [f"refused: {refused}" for refused in self.refused]

    def _counts(self) -> list[tuple[str, Count]]:
        names = ("locations", "services", "doctors", "schedules", "slots", "patients", "children", "visits")
        return [(name, getattr(self, name)) for name in names]


async def load(
    clinic: Clinic,
    *,
    url: str,
    admin_login: str,
    admin_password: str,
    account_password: str | None,
    patience_s: float = PATIENCE_S,
    progress: Callable[[str], None] = lambda line: None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> LoadReport:
    """Load the clinic into the zapis at that address.

    New accounts get ``account_password``, which must pass the server's rules; it may be ``None`` for a clinic without
    accounts. The same password logs in where a patient's account is there already. ``progress`` is told when each part
    of the clinic is done.

    Raises:
        LoadFailed: the server refuses what all the rest needs, or does not answer. What was made stays.
    """
    if account_password is None and (clinic.doctors or clinic.patients):
        raise LoadFailed("the clinic has accounts, which need a password")
    try:
        opened = http_client(url, connections=CONCURRENCY, transport=transport)
    except httpx.InvalidURL as error:
        raise LoadFailed(f"{url}: {error}") from error
    async with opened as client:
        api = PublicApi(client, patience_s=patience_s, connect_patience_s=CONNECT_PATIENCE_S)
        loader = _Loader(clinic, api, Account(api, admin_login, admin_password), account_password or "", progress)
        try:
            await loader.load()
        except Refused as refused:
            raise LoadFailed(f"{url} refuses: {refused}") from refused
        except Unanswered as unanswered:
            raise LoadFailed(f"{url} does not answer: {unanswered}") from unanswered
        return loader.report


class _Loader:
    def __init__(
        self, clinic: Clinic, api: PublicApi, admin: Account, account_password: str, progress: Callable[[str], None]
    ) -> None:
        self.report = LoadReport()
        self._clinic = clinic
        self._api = api
        self._admin = admin
        self._account_password = account_password
        self._progress = progress
        self._locations: dict[str, str] = {}
        self._services: dict[str, str] = {}
        self._doctors: dict[str, str] = {}
        self._patients: dict[tuple[str, str | None], tuple[Account, str]] = {}
        self._visitors = {visit.patient for visit in clinic.visits}
        self._users: dict[str, Json] | None = None
        self._listing_users = asyncio.Lock()

    async def load(self) -> None:
        await self._admin.call("GET", "/v1/me")  # A wrong password is told before anything is begun.
        await self._load_directory()
        await _each(self._clinic.doctors, self._load_doctor)
        self._progress(f"{len(self._clinic.doctors)} doctors, their schedules and slots")
        await _each(self._clinic.patients, self._load_patient)
        self._progress(f"{len(self._clinic.patients)} patients")
        for visit in self._clinic.visits:  # One after the other: a visit whose slot is gone must not take another's.
            await self._load_visit(visit)
        self._progress(f"{len(self._clinic.visits)} visits")

    # The directory.

    async def _load_directory(self) -> None:
        for location in self._clinic.locations:
            body: Json = {"name": location.name, "address": location.address, "timezone": location.timezone}
            made = await _make(self._admin, "/v1/admin/locations", body, self._ids_of_locations)
            self._locations[location.name] = made.id
            self.report.locations.add(made=made.new)
        for service in self._clinic.services:
            made = await _make(self._admin, "/v1/admin/services", _service(service), self._ids_of_services)
            self._services[service.name] = made.id
            self.report.services.add(made=made.new)
        self._progress(f"{len(self._locations)} locations, {len(self._services)} services")

    async def _ids_of_locations(self) -> dict[str, str]:
        return _ids(await self._api.items("/v1/locations"))

    async def _ids_of_services(self) -> dict[str, str]:
        return _ids(await self._api.items("/v1/services"))

    # Doctors.

    async def _load_doctor(self, doctor: Doctor) -> None:
        doctor_id = await self._make_doctor(doctor)
        if doctor_id is None:
            return
        self._doctors[doctor.login] = doctor_id
        try:
            await self._publish(doctor, f"/v1/admin/doctors/{doctor_id}")
        except Refused as refused:
            self.report.refused.append(f"schedules of doctor {doctor.login}: {refused}")

    async def _publish(self, doctor: Doctor, path: str) -> None:

        async def ids_of_templates() -> dict[str, str]:
            return _ids(await self._admin.items(f"{path}/templates"))

        for schedule in doctor.schedules:
            made = await _make(self._admin, f"{path}/templates", self._template(schedule), ids_of_templates)
            self.report.schedules.add(made=made.new)
        if doctor.schedules:
            days = {"from": self._clinic.today.isoformat(), "to": self._clinic.publish_to.isoformat()}
            published = (await self._admin.call("POST", f"{path}/publish", json=days)).body
            self.report.slots.made += published["opened"]
            self.report.slots.kept += published["kept"]
            self.report.skipped.update(slot["why"] for slot in published["skipped"])

    async def _make_doctor(self, doctor: Doctor) -> str | None:
        body = {
            "login": doctor.login,
            "password": self._account_password,
            "name": doctor.name,
            "email": doctor.email,
            "phone": doctor.phone,
            "specialties": list(doctor.specialties),
            "location_ids": [self._locations[name] for name in doctor.locations],
            "service_ids": [self._services[name] for name in doctor.services],
        }
        try:
            answer = await self._admin.call("POST", "/v1/admin/doctors", json=body)
            self.report.doctors.add(made=True)
            return str(answer.body["id"])
        except Refused as refused:
            if refused.code != "login_taken":
                self.report.refused.append(f"doctor {doctor.login}: {refused}")
                return None
        user = (await self._users_by_login()).get(doctor.login)
        if user is None or user.get("doctor_id") is None:
            self.report.refused.append(f"doctor {doctor.login}: the login is another person's")
            return None
        self.report.doctors.add(made=False)
        return str(user["doctor_id"])

    async def _users_by_login(self) -> dict[str, Json]:
        async with self._listing_users:
            if self._users is None:
                self._users = {user["login"]: user for user in await self._admin.items("/v1/admin/users")}
            return self._users

    def _template(self, schedule: Template) -> Json:
        rules: list[Json] = []
        for rule in schedule.rules:
            rules.append(
                {
                    "weekday": rule.weekday.value,
                    "start": f"{rule.start:%H:%M}",
                    "slot_minutes": rule.slot_minutes,
                    "slots": rule.slots,
                    "break_minutes": rule.break_minutes,
                }
            )
            if rule.service_id is not None:
                rules[-1]["service_id"] = self._services[rule.service_id]
        template: Json = {
            "name": schedule.id,
            "location_id": self._locations[schedule.location_id],
            "valid_from": schedule.valid_from.isoformat(),
            "rules": rules,
        }
        if schedule.valid_to is not None:
            template["valid_to"] = schedule.valid_to.isoformat()
        return template

    # Patients.

    async def _load_patient(self, patient: Patient) -> None:
        body = {
            "login": patient.login,
            "password": self._account_password,
            "name": patient.name,
            "birth_date": patient.birth_date.isoformat(),
            "email": patient.email,
            "phone": patient.phone,
        }
        try:
            await self._api.call("POST", "/v1/auth/register", json=body)
            self.report.patients.add(made=True)
        except Refused as refused:
            if refused.code != "login_taken":
                self.report.refused.append(f"patient {patient.login}: {refused}")
                return
            self.report.patients.add(made=False)
        if patient.login not in self._visitors and not patient.children:
            return
        account = Account(self._api, patient.login, self._account_password)
        try:
            me = (await account.call("GET", "/v1/me")).body
        except Refused as refused:
            if refused.status not in (400, 401, 403):
                raise
            self.report.refused.append(
                f"patient {patient.login}: there with another password, so its children and visits are left alone"
            )
            return
        self._patients[patient.login, None] = account, me["patient_id"]
        for child in patient.children:
            child_id = await self._load_child(account, child, me["patient_id"])
            self._patients[patient.login, child.name] = account, child_id

    async def _load_child(self, account: Account, child: Child, parent_id: str) -> str:
        async def ids_of_children() -> dict[str, str]:
            return _ids(known for known in await account.items("/v1/me/patients") if known["id"] != parent_id)

        body = {"name": child.name, "birth_date": child.birth_date.isoformat(), "relation": "child"}
        made = await _make(account, "/v1/me/patients", body, ids_of_children)
        self.report.children.add(made=made.new)
        return made.id

    # Visits.

    async def _load_visit(self, visit: Visit) -> None:
        patient, doctor_id = self._patients.get((visit.patient, visit.child)), self._doctors.get(visit.doctor)
        if patient is None or doctor_id is None:
            return  # Why they are missing is told already.
        account, patient_id = patient
        filters = {"patient_id": patient_id, "doctor_id": doctor_id, "limit": "1"}
        if (await account.call("GET", "/v1/appointments", params=filters)).body["items"]:
            self.report.visits.add(made=False)
            return
        refused: Refused | None = None
        for slot_id in await self._slots_for(visit, doctor_id):
            try:
                await account.book(slot_id, key=_key(visit), patient_id=patient_id, reason=visit.reason)
                self.report.visits.add(made=True)
                return
            except Refused as again:
                if again.code == "idempotency_key_reused":
                    # It was booked by this key before, in another slot than the one that is free now.
                    self.report.visits.add(made=False)
                    return
                refused = again
                if again.code not in ("slot_taken", "slot_unavailable", "patient_overlap", "too_late"):
                    break
        who = visit.patient if visit.child is None else f"{visit.child} of {visit.patient}"
        why = refused or "no slot is free on that day"
        self.report.refused.append(f"visit of {who} to {visit.doctor}: {why}")

    async def _slots_for(self, visit: Visit, doctor_id: str) -> list[str]:
        """The visit's slot if it is free, and those to fall back to: the free ones within a day after it."""
        day = timedelta(days=1)
        params = {
            "doctor_id": doctor_id,
            "from": (visit.start - day).date().isoformat(),
            "to": (visit.start + day).date().isoformat(),
            "status": "free",
        }
        slots = await self._api.items("/v1/slots", params)
        later = [slot for slot in slots if visit.start <= datetime.fromisoformat(slot["start"]) < visit.start + day]
        return [slot["id"] for slot in later[:SLOT_TRIES_MAX]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    id: str
    new: bool


async def _make(account: Account, path: str, body: Json, known: Callable[[], Awaitable[dict[str, str]]]) -> _Made:
    """Make what is known by a name that the server does not hold to be unique: only after looking, each time anew.

    Raises:
        Refused, Unanswered
    """
    for _ in range(MAKE_TRIES_MAX):
        ids = await known()
        if body["name"] in ids:
            return _Made(id=ids[body["name"]], new=False)
        try:
            answer = await account.call("POST", path, json=body, repeatable=False)
            return _Made(id=answer.body["id"], new=True)
        except Unanswered:
            continue  # It may be there now.
    raise Unanswered(f"POST {path}: no answer {MAKE_TRIES_MAX} times")


async def _each(parts: Iterable[_T], load_part: Callable[[_T], Awaitable[None]]) -> None:
    """Load the parts, some at a time. The first that fails ends the others, and its error is raised."""
    waiting = iter(parts)

    async def work() -> None:
        for part in waiting:
            await load_part(part)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(work())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _service(service: Service) -> Json:
    body: Json = {"name": service.name, "minutes": service.minutes}
    if service.price is not None:
        body["price"] = {"amount_minor": service.price.amount_minor, "currency": service.price.currency}
    return body


def _ids(items: Iterable[Json]) -> dict[str, str]:
    """Ids by name; of several of one name the first that was made, whose id is the least."""
    return {item["name"]: item["id"] for item in sorted(items, key=lambda item: str(item["id"]), reverse=True)}


def _key(visit: Visit) -> str:
    """The same whenever the visit is loaded, and telling nobody whose it is."""
    whose = "\0".join((visit.patient, visit.child or "", visit.doctor))
    return f"load-{hashlib.sha256(whose.encode()).hexdigest()[:32]}"
