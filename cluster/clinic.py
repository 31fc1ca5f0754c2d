"""A whole clinic from one file: what it says, and everything that is wrong with it, each with its place.

The file names things instead of numbering them: a doctor's ``locations`` are names of locations, a visit's ``patient``
is a login. Days are dates or are counted from the day it is loaded (``today``, ``today+28``), so that a file does not
grow old. It holds no passwords. ``demo.yaml`` beside this module is one to copy, and explains each part.

``parse`` gives a clinic that is right in every way a file alone can be, or raises ``BadClinic`` with all its faults at
once. A visit's slot is worked out here too, so that a visit on a day off is a fault in a line of the file and not a
refusal half-way through loading it.
"""

import importlib.resources
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import TypeVar

from actors.availability import (
    RULES_PER_TEMPLATE_MAX,
    SLOTS_PER_RULE_MAX,
    Opening,
    Template,
    Weekday,
    WeeklyRule,
    openings,
    zone,
)
from cluster import placed_fields as field
from cluster.clinic_parts import Child, Clinic, Doctor, Location, Patient, Price, Service, Visit
from cluster.placed_fields import Fault, Faults, Fields, quoted, unknown
from cluster.placed_yaml import SIZE_BYTES_MAX, Node, NotYaml, compose
from cluster.rule_overlap import overlapping

REASON_LENGTH_MAX = 500
LOCATIONS_MAX = 1_000
SERVICES_MAX = 1_000
DOCTORS_MAX = 5_000
PATIENTS_MAX = 10_000
VISITS_MAX = 10_000
NAMES_PER_DOCTOR_MAX = 50
SPECIALTIES_PER_DOCTOR_MAX = 20
SPECIALTY_LENGTH_MAX = 100
SCHEDULES_PER_DOCTOR_MAX = 50
RULES_PER_DOCTOR_MAX = 200
CHILDREN_PER_PATIENT_MAX = 20
PUBLISH_DAYS_MAX = 365
PUBLISH_DAYS_DEFAULT = 28  # only to go on checking where the file's own is wrong
MINUTES_PER_DAY = 24 * 60
PRICE_MAX = 10**12


class BadClinic(ValueError):
    """The file cannot be loaded. ``str()`` is one line a fault: ``file:line: path: what is wrong``."""

    def __init__(self, source: str, faults: tuple[Fault, ...]) -> None:
        super().__init__(source, faults)
        self.source = source
        self.faults = faults

    def __str__(self) -> str:
        places = (f"{fault.path}: " if fault.path else "" for fault in self.faults)
        return "\n".join(
            f"{self.source}:{fault.line}: {place}{fault.what}" for fault, place in zip(self.faults, places, strict=True)
        )


def read(path: Path, *, today: date) -> Clinic:
    """The clinic in that file, as of that day.

    Raises:
        BadClinic: something is wrong with what it says.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(SIZE_BYTES_MAX + 1)
    return parse(content, source=str(path), today=today)


def read_demo(*, today: date) -> Clinic:
    """The demo clinic that comes with zapis, as of that day."""
    demo = importlib.resources.files("cluster").joinpath("demo.yaml")
    return parse(demo.read_bytes(), source="demo.yaml", today=today)


def parse(content: bytes, *, source: str, today: date) -> Clinic:
    """The clinic that the text of a file says, as of that day. ``source`` names the file in messages.

    Raises:
        BadClinic: something is wrong with it; has every fault, in the order of their lines.
    """
    try:
        root = compose(content)
    except NotYaml as error:
        raise BadClinic(source, (Fault(line=error.line, path="", what=error.what),)) from error
    reader = _Reader(today)
    clinic = reader.clinic(root)
    if reader.faults.count:
        raise BadClinic(source, reader.faults.by_line())
    return clinic


_Part = TypeVar("_Part")


class _Reader:
    """Reads the file part by part.

    A part with a fault is known by its name all the same, as ``None``, so that nothing is called wrong for its sake.
    """

    def __init__(self, today: date) -> None:
        self.faults = Faults()
        self._today = today
        self._publish_to = today + timedelta(days=PUBLISH_DAYS_DEFAULT)
        self._locations: dict[str, Location | None] = {}
        self._services: dict[str, Service | None] = {}
        self._doctors: dict[str, Doctor | None] = {}
        self._patients: dict[str, Patient | None] = {}
        self._lines: dict[str, int] = {}
        self._walls: dict[str, dict[Opening, datetime]] = {}
        self._taken: dict[str, set[Opening]] = {}
        self._visits: dict[tuple[str, str | None], dict[str, Opening]] = {}

    def clinic(self, root: Node) -> Clinic:
        """The clinic, of use only if no fault was noted."""
        fields = Fields(self.faults, root, "", "publish locations services doctors", "patients visits")
        self._publish(fields)
        return Clinic(
            today=self._today,
            publish_to=self._publish_to,
            locations=self._each(fields, "locations", LOCATIONS_MAX, self._location),
            services=self._each(fields, "services", SERVICES_MAX, self._service),
            doctors=self._each(fields, "doctors", DOCTORS_MAX, self._doctor),
            patients=self._each(fields, "patients", PATIENTS_MAX, self._patient),
            visits=self._each(fields, "visits", VISITS_MAX, self._visit),
        )

    def _each(
        self, fields: Fields, key: str, most: int, read_part: Callable[[Node, str], _Part | None]
    ) -> tuple[_Part, ...]:
        parts = [read_part(node, path) for node, path in fields.each(key, most=most)]
        return tuple(part for part in parts if part is not None)

    def _publish(self, fields: Fields) -> None:
        publish = fields.below("publish", "", "days weeks")
        if publish is None or not publish.sound:
            return
        if ("days" in publish) == ("weeks" in publish):
            self.faults.note(publish.node, publish.path, "must have either 'days' or 'weeks'")
        days = publish.read("days", field.whole(1, PUBLISH_DAYS_MAX), 0)
        weeks = publish.read("weeks", field.whole(1, PUBLISH_DAYS_MAX // 7), 0)
        if publish.sound:
            self._publish_to = self._today + timedelta(days=days or 7 * weeks)

    def _location(self, node: Node, path: str) -> Location | None:
        fields = Fields(self.faults, node, path, "name address timezone")
        location = Location(
            name=fields.read("name", field.text, ""),
            address=fields.read("address", field.text, ""),
            timezone=fields.read("timezone", field.zone_name, ""),
        )
        self._once(fields, "name", "location", location.name)
        return self._known(self._locations, location.name, fields, location)

    def _service(self, node: Node, path: str) -> Service | None:
        fields = Fields(self.faults, node, path, "name minutes", "price")
        price = fields.below("price", "amount_minor currency")
        service = Service(
            name=fields.read("name", field.text, ""),
            minutes=fields.read("minutes", field.whole(1, MINUTES_PER_DAY), 0),
            price=None
            if price is None
            else Price(
                amount_minor=price.read("amount_minor", field.whole(0, PRICE_MAX), 0),
                currency=price.read("currency", field.currency, ""),
            ),
        )
        self._once(fields, "name", "service", service.name)
        return self._known(self._services, service.name, fields, service)

    def _doctor(self, node: Node, path: str) -> Doctor | None:
        fields = Fields(self.faults, node, path, "login name email phone specialties locations", "services schedules")
        locations = self._names(fields, "locations", "location", self._locations, least=1)
        services = self._names(fields, "services", "service", self._services)
        schedules = self._schedules(fields, locations, services)
        doctor = Doctor(
            login=fields.read("login", field.login, ""),
            name=fields.read("name", field.person, ""),
            email=fields.read("email", field.email, ""),
            phone=fields.read("phone", field.phone, ""),
            specialties=self._names(fields, "specialties", "specialty", None, least=1, most=SPECIALTIES_PER_DOCTOR_MAX),
            locations=locations,
            services=services,
            schedules=schedules or (),
        )
        self._one_account(fields, doctor.login, doctor.email, doctor.phone)
        if fields.sound and schedules is not None:
            self._publish_schedules(fields, doctor)
        return self._known(self._doctors, doctor.login, fields, None if schedules is None else doctor)

    def _patient(self, node: Node, path: str) -> Patient | None:
        fields = Fields(self.faults, node, path, "login name birth_date email phone", "children")
        children: dict[str, Child] = {}
        for child_node, child_path in fields.each("children", most=CHILDREN_PER_PATIENT_MAX):
            child = Fields(self.faults, child_node, child_path, "name birth_date")
            name = child.read("name", field.person, "")
            if name and name in children:
                child.fault("name", f"{quoted(name)} is here twice")
            birth_date = child.read("birth_date", field.birth_date(self._today), self._today)
            children[name] = Child(name=name, birth_date=birth_date)
        patient = Patient(
            login=fields.read("login", field.login, ""),
            name=fields.read("name", field.person, ""),
            birth_date=fields.read("birth_date", field.birth_date(self._today), self._today),
            email=fields.read("email", field.email, ""),
            phone=fields.read("phone", field.phone, ""),
            children=tuple(children.values()),
        )
        self._one_account(fields, patient.login, patient.email, patient.phone)
        return self._known(self._patients, patient.login, fields, patient)

    def _visit(self, node: Node, path: str) -> Visit | None:
        fields = Fields(self.faults, node, path, "patient doctor day", "child time slot reason")
        patient, doctor = fields.read("patient", field.login, ""), fields.read("doctor", field.login, "")
        child = fields.read("child", field.text, None)
        reason = fields.read("reason", lambda scalar: field.text(scalar, REASON_LENGTH_MAX), None)
        day = fields.read("day", field.whole(0, PUBLISH_DAYS_MAX), 0)
        at = fields.read("time", field.clock, None)
        nth = fields.read("slot", field.whole(1, MINUTES_PER_DAY), None)
        if patient and patient not in self._patients:
            fields.fault("patient", unknown("patient", patient, self._patients))
        if doctor and doctor not in self._doctors:
            fields.fault("doctor", unknown("doctor", doctor, self._doctors))
        if ("time" in fields) == ("slot" in fields):
            self.faults.note(node, path, "must have either 'time' or 'slot'")
        visitor = self._patients.get(patient)
        if not fields.sound or visitor is None or self._doctors.get(doctor) is None:
            return None
        if child is not None and child not in (known.name for known in visitor.children):
            fields.fault("child", unknown(f"child of {patient!r}", child, (known.name for known in visitor.children)))
            return None
        visits = self._visits.setdefault((patient, child), {})
        if doctor in visits:
            # Loading a file again must add nothing, and a visit is known again by who visits whom.
            self.faults.note(node, path, "the patient visits this doctor already; a file has one visit of a pair")
            return None
        slot = self._slot(fields, doctor, day, at, nth)
        if slot is None:
            return None
        if any(slot.start < other.end and other.start < slot.end for other in visits.values()):
            self.faults.note(node, path, "the patient has another visit at that time")
        visits[doctor] = slot
        return Visit(patient=patient, child=child, doctor=doctor, start=slot.start, reason=reason)

    # Names.

    def _once(self, fields: Fields, key: str, kind: str, value: str) -> None:
        """Note a fault where something of that kind has this value already."""
        if value and f"{kind} {value}" in self._lines:
            fields.fault(key, f"{quoted(value)} is here twice, first in line {self._lines[f'{kind} {value}']}")
        elif value:
            self._lines[f"{kind} {value}"] = fields.line(key)

    def _one_account(self, fields: Fields, login: str, email: str, phone: str) -> None:
        self._once(fields, "login", "login", login)
        self._once(fields, "email", "email", email.casefold())
        self._once(fields, "phone", "phone", phone)

    def _known(self, known: dict[str, _Part | None], name: str, fields: Fields, part: _Part | None) -> _Part | None:
        """The part if it is sound. Either way its name is known from now on."""
        sound = part if fields.sound else None
        if name:
            known.setdefault(name, sound)
        return sound

    def _names(
        self,
        fields: Fields,
        key: str,
        kind: str,
        known: Mapping[str, object] | None,
        *,
        least: int = 0,
        most: int = NAMES_PER_DOCTOR_MAX,
    ) -> tuple[str, ...]:
        """A list of different names, each of something known; those with a fault are left out."""
        names: list[str] = []
        for node, path in fields.each(key, least=least, most=most):
            name = field.read(self.faults, node, path, field.text, "")
            if name in names:
                self.faults.note(node, path, f"{quoted(name)} is here twice")
            elif known is None and len(name) > SPECIALTY_LENGTH_MAX:
                self.faults.note(node, path, f"must have at most {SPECIALTY_LENGTH_MAX} characters")
            elif name and known is not None and name not in known:
                self.faults.note(node, path, unknown(kind, name, known))
            elif name:
                names.append(name)
        return tuple(names)

    # Schedules.

    def _schedules(
        self, doctor: Fields, locations: tuple[str, ...], services: tuple[str, ...]
    ) -> tuple[Template, ...] | None:
        """The doctor's schedules, or ``None`` where one cannot be made, by its own fault or by that of its location."""
        templates: list[Template | None] = []
        placed: list[tuple[Template, WeeklyRule, Node, str]] = []
        for node, path in doctor.each("schedules", most=SCHEDULES_PER_DOCTOR_MAX):
            fields = Fields(self.faults, node, path, "name location rules", "valid_from valid_to")
            name, location = fields.read("name", field.text, ""), fields.read("location", field.text, "")
            self._once(fields, "name", f"{doctor.path} schedule", name)
            if location and location not in locations:
                fields.fault("location", f"{quoted(location)} is not one of this doctor's locations")
            valid_from = fields.read("valid_from", field.day(self._today), self._today)
            valid_to = fields.read("valid_to", field.day(self._today), None)
            items = fields.each("rules", least=1, most=RULES_PER_TEMPLATE_MAX)
            rules = [self._rule(item, at, services) for item, at in items]
            known = self._locations.get(location)
            templates.append(None)
            if not fields.sound or known is None:
                continue
            try:
                templates[-1] = template = Template(
                    id=name,
                    location_id=location,
                    timezone=known.timezone,
                    valid_from=valid_from,
                    valid_to=valid_to,
                    rules=tuple(rule for rule in rules if rule is not None),
                )
            except ValueError as error:
                fields.fault(*str(error).split(": ", 1))
                continue
            for rule, (item, at) in zip(template.rules, items, strict=True):
                placed.append((template, rule, item, at))
        if len(placed) > RULES_PER_DOCTOR_MAX:
            doctor.fault("schedules", f"must have at most {RULES_PER_DOCTOR_MAX} rules together")
        else:
            self._no_overlaps(placed)
        made = tuple(template for template in templates if template is not None)
        return made if len(made) == len(templates) else None

    def _rule(self, node: Node, path: str, services: tuple[str, ...]) -> WeeklyRule | None:
        fields = Fields(self.faults, node, path, "weekday start slot_minutes slots", "break_minutes service")
        weekday = fields.read("weekday", field.choice(*Weekday), Weekday.MON)
        start = fields.read("start", field.clock, time())
        slot_minutes = fields.read("slot_minutes", field.whole(1, MINUTES_PER_DAY), 1)
        slots = fields.read("slots", field.whole(1, SLOTS_PER_RULE_MAX), 1)
        break_minutes = fields.read("break_minutes", field.whole(0, MINUTES_PER_DAY), 0)
        service = fields.read("service", field.text, None)
        if service is not None and service not in services:
            fields.fault("service", f"{quoted(service)} is not one of this doctor's services")
        if not fields.sound:
            return None
        try:
            return WeeklyRule(
                weekday=Weekday(weekday),
                start=start,
                slot_minutes=slot_minutes,
                slots=slots,
                break_minutes=break_minutes,
                service_id=service,
            )
        except ValueError as error:
            fields.fault(*str(error).split(": ", 1))
            return None

    def _publish_schedules(self, fields: Fields, doctor: Doctor) -> None:
        """Keep what the doctor's schedules will open, with what the clock on the wall shows then."""
        try:
            opened, _ = openings(doctor.schedules, self._today, self._publish_to)
        except ValueError as error:
            fields.fault("schedules", f"too much to publish: {error}")
            return
        zones = {template.location_id: zone(template.timezone) for template in doctor.schedules}
        self._walls[doctor.login] = {slot: slot.start.astimezone(zones[slot.location_id]) for slot in opened}

    def _no_overlaps(self, placed: list[tuple[Template, WeeklyRule, Node, str]]) -> None:
        rules = [(template, rule) for template, rule, _, _ in placed]
        for later, earlier in overlapping(rules, self._today, self._publish_to):
            _, _, node, path = placed[later]
            self.faults.note(node, path, f"overlaps the rule in line {placed[earlier][2].line}")

    # Visits.

    def _slot(self, fields: Fields, doctor: str, day: int, at: time | None, nth: int | None) -> Opening | None:
        """The slot at that time, or the nth not taken, on the doctor's first working day, ``day`` days on or later."""
        first = self._today + timedelta(days=day)
        walls = self._walls[doctor]
        working_day = min((wall.date() for wall in walls.values() if wall.date() >= first), default=None)
        if working_day is None:
            fields.fault("day", f"{doctor!r} has no slots from {first} to {self._publish_to}")
            return None
        taken = self._taken.setdefault(doctor, set())
        free = [slot for slot, wall in walls.items() if wall.date() == working_day and slot not in taken]
        if at is not None:
            slot = next((slot for slot in free if walls[slot].time() == at), None)
        else:
            assert nth is not None
            slot = free[nth - 1] if nth <= len(free) else None
        if slot is None:
            times = ", ".join(f"{walls[slot]:%H:%M}" for slot in free) or "none"
            fields.fault("slot" if at is None else "time", f"free slots of {doctor!r} on {working_day}: {times}")
            return None
        taken.add(slot)
        return slot
