"""The clinic file: what it gives, and that every fault in it is told with its place."""

import os
import time as clock
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import pytest

from actors.availability import Weekday, openings
from cluster import placed_fields, placed_yaml
from cluster.clinic import BadClinic, parse, read, read_demo
from cluster.clinic_parts import Child, Clinic, Location, Price, Service, Visit

TODAY = date(2026, 11, 23)  # a Monday

GOOD = """\
publish: {days: 10}
locations:
  - {name: North, address: 1 North Road, timezone: Europe/Moscow}
  - {name: East, address: 2 East Road, timezone: Asia/Yekaterinburg}
services:
  - {name: Talk, minutes: 30, price: {amount_minor: 5000, currency: EUR}}
  - {name: Look, minutes: 20}
doctors:
  - login: dr.one
    name: Ada One
    email: one@example.org
    phone: "+1 202 555 0101"
    specialties: [cardiology]
    locations: [North, East]
    services: [Talk]
    schedules:
      - name: week
        location: North
        valid_from: today-1
        valid_to: 2027-01-31
        rules:
          - {weekday: tue, start: 10:00, slot_minutes: 30, slots: 4, service: Talk}
          - weekday: fri
            start: "09:00"
            slot_minutes: 20
            slots: 2
            break_minutes: 10
patients:
  - login: pat
    name: Pat Patient
    birth_date: 1980-02-29
    email: pat@example.com
    phone: "+12025550102"
    children:
      - {name: Kim Patient, birth_date: 2020-01-01}
visits:
  - {patient: pat, doctor: dr.one, day: 1, time: 10:30, reason: A cough}
  - {patient: pat, child: Kim Patient, doctor: dr.one, day: 2, slot: 2}
"""


def clinic(text: str = GOOD) -> Clinic:
    return parse(text.encode(), source="clinic.yaml", today=TODAY)


def faults(text: str | bytes) -> list[str]:
    content = text.encode() if isinstance(text, str) else text
    with pytest.raises(BadClinic) as caught:
        parse(content, source="clinic.yaml", today=TODAY)
    return str(caught.value).split("\n")


def changed(old: str, new: str, text: str = GOOD) -> str:
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the text"
    return text.replace(old, new)


def line_of(text: str, words: str) -> int:
    return text[: text.index(words)].count("\n") + 1


# What is right.


def test_a_good_file_gives_its_parts() -> None:
    got = clinic()

    assert got.today == TODAY
    assert got.publish_to == date(2026, 12, 3)
    assert got.locations[1] == Location(name="East", address="2 East Road", timezone="Asia/Yekaterinburg")
    assert got.services == (
        Service(name="Talk", minutes=30, price=Price(amount_minor=5000, currency="EUR")),
        Service(name="Look", minutes=20, price=None),
    )
    (doctor,) = got.doctors
    assert (doctor.login, doctor.phone, doctor.locations) == ("dr.one", "+12025550101", ("North", "East"))
    (schedule,) = doctor.schedules
    assert (schedule.id, schedule.location_id, schedule.timezone) == ("week", "North", "Europe/Moscow")
    assert (schedule.valid_from, schedule.valid_to) == (date(2026, 11, 22), date(2027, 1, 31))
    tuesday, friday = schedule.rules
    assert (tuesday.weekday, tuesday.start, tuesday.service_id) == (Weekday.TUE, time(10), "Talk")
    assert (friday.start, friday.break_minutes, friday.service_id) == (time(9), 10, None)
    assert got.patients[0].children == (Child(name="Kim Patient", birth_date=date(2020, 1, 1)),)


def test_visits_get_their_slots() -> None:
    own, childs = clinic().visits

    assert own == Visit(
        patient="pat",
        child=None,
        doctor="dr.one",
        start=datetime(2026, 11, 24, 7, 30, tzinfo=UTC),
        reason="A cough",
    )
    # From Wednesday on the doctor's first day is Friday, whose second slot begins at 09:30.
    assert (childs.child, childs.start, childs.reason) == (
        "Kim Patient",
        datetime(2026, 11, 27, 6, 30, tzinfo=UTC),
        None,
    )


def test_what_may_be_left_out() -> None:
    got = clinic(GOOD[: GOOD.index("    schedules:")] + "patients:\n")

    assert got.doctors[0].schedules == ()
    assert (got.patients, got.visits) == ((), ())


def test_anchors_may_be_used() -> None:
    text = changed("services: [Talk]", "services: &offered [Talk]")
    text += "  - {patient: pat, doctor: dr.one, child: &child Kim Patient, day: 9, slot: 1}\n"

    assert "&offered" in text
    (only,) = faults(text)
    assert only == (
        f"clinic.yaml:{line_of(text, '  - {patient: pat, doctor: dr.one, child: &')}: visits[2]: "
        "the patient visits this doctor already; a file has one visit of a pair"
    )


def test_a_file_is_read_and_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("\ufeff" + GOOD, encoding="utf-8")
    bad.write_text("publish: {days: 1}\n", encoding="utf-8")

    assert read(good, today=TODAY) == clinic()
    with pytest.raises(BadClinic, match=r"bad\.yaml:1: 'locations' is missing"):
        read(bad, today=TODAY)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.yaml", today=TODAY)


@pytest.mark.parametrize("days", range(8))
def test_the_demo_is_right_on_every_weekday(days: int) -> None:
    today = TODAY + timedelta(days=days)
    demo = read_demo(today=today)

    assert len(demo.doctors) == 12
    assert len({specialty for doctor in demo.doctors for specialty in doctor.specialties}) == 4
    assert len({location.timezone for location in demo.locations}) == len(demo.locations) == 2
    assert {service.price is None for service in demo.services} == {True, False}
    assert demo.publish_to == today + timedelta(weeks=4)
    assert len(demo.patients) == 20
    assert sum(len(patient.children) for patient in demo.patients) >= 5
    assert len(demo.visits) == 14
    assert all(visit.start.date() > today for visit in demo.visits)
    opened = [slot for doctor in demo.doctors for slot in openings(doctor.schedules, today, demo.publish_to)[0]]
    days_open = {slot.start.date() for slot in opened}
    assert days_open >= {today + timedelta(days=number) for number in range(28)}


# What is wrong. Each case changes the good file in one place, and says what is then told of that line.

WRONG = [
    # keys
    ("address: 1 North Road, ", "", "locations[0]: 'address' is missing"),
    ("name: Look", "name: Look, name: Again", "services[1].name: the key is here twice, first in line 7"),
    ("slots: 2", "slots: 2\n            slots: 3", "doctors[0].schedules[0].rules[1].slots: the key is here twice"),
    ("publish:", "wards: []\npublish:", "wards: unknown key; known here: publish, locations, services, doctors"),
    # types
    ("name: Ada One", "name: [Ada, One]", "doctors[0].name: must be one value"),
    ("name: Ada One", "name: 12", "doctors[0].name: must be text; if it is, put 12 in quotes"),
    ("name: Ada One", "name:", "doctors[0].name: must not be empty"),
    ("name: Ada One", "name: '...'", "doctors[0].name: must have a letter"),
    ("name: Ada One", 'name: "a\\0b"', "doctors[0].name: must not have control characters"),
    ("name: Ada One", f"name: {'x' * 201}", "doctors[0].name: must have at most 200 characters"),
    ("specialties: [cardiology]", "specialties:", "doctors[0].specialties: must have from 1 to 20 items"),
    ("{days: 10}", "10", "publish: must have keys and values: days, weeks"),
    ("- {name: Look, minutes: 20}", "- Look", "services[1]: must have keys and values: name, minutes"),
    ("minutes: 20}", "minutes: twenty}", "services[1].minutes: must be a whole number from 1 to 1440"),
    ("minutes: 20}", 'minutes: "20"}', "services[1].minutes: must be a whole number"),
    ("minutes: 20}", "minutes: 20.5}", "services[1].minutes: must be a whole number"),
    ("minutes: 20}", "minutes: 0}", "services[1].minutes: must be from 1 to 1440"),
    ("minutes: 20}", "minutes: ٢٠}", "services[1].minutes: must be a whole number"),
    # values
    ("days: 10", "days: 400", "publish.days: must be from 1 to 365"),
    ("days: 10", "days: 10, weeks: 1", "publish: must have either 'days' or 'weeks'"),
    ("{days: 10}", "{}", "publish: must have either 'days' or 'weeks'"),
    ("Europe/Moscow", "Europe/Moskow", "locations[0].timezone: 'Europe/Moskow' is not the name of a time zone"),
    ("Europe/Moscow", "../../etc/passwd", "locations[0].timezone: '../../etc/passwd' is not the name"),
    ("amount_minor: 5000", "amount_minor: -1", "services[0].price.amount_minor: must be from 0 to"),
    ("currency: EUR", "currency: Euro", "services[0].price.currency: must be three capital letters"),
    ("one@example.org", "one.example.org", "doctors[0].email: 'one.example.org' is not an e-mail address"),
    ('"+1 202 555 0101"', "2025550101", "doctors[0].phone: '2025550101' is not a phone number with its country"),
    ('"+1 202 555 0101"', "+1 202", "doctors[0].phone: '+1 202' is not a phone number"),
    ("weekday: tue", "weekday: tuesday", "rules[0].weekday: must be one of mon, tue, wed, thu, fri, sat, sun"),
    ("start: 10:00", "start: 25:00", "rules[0].start: must be a time such as 09:00"),
    ("start: 10:00", "start: 600", "rules[0].start: must be a time such as 09:00"),
    ("slots: 4", "slots: 49", "rules[0].slots: must end within 24 hours of the rule's start"),
    ("slots: 4", "slots: 289", "rules[0].slots: must be from 1 to 288"),
    ("valid_from: today-1", "valid_from: soon", "valid_from: must be a date such as 2026-11-24, or today, or today+28"),
    ("valid_from: today-1", "valid_from: today+9999", "valid_from: must be within 3660 days of today"),
    ("2027-01-31", "2227-01-31", "valid_to: must be from 1901-01-01 to 2199-12-31"),
    ("2027-01-31", "2027-02-31", "valid_to: there is no such day"),
    ("2027-01-31", "2025-01-31", "valid_to: must not be before valid_from"),
    ("1980-02-29", "1981-02-29", "patients[0].birth_date: there is no such day"),
    ("1980-02-29", "2126-01-01", "patients[0].birth_date: must not be after today"),
    ("birth_date: 2020-01-01", "birth_date: 2020", "patients[0].children[0].birth_date: must be a date such as"),
    # references
    (
        "locations: [North, East]",
        "locations: [North, Est]",
        "there is no location 'Est'; did you mean 'East'?",
    ),
    ("services: [Talk]", "services: [Talk, Walk]", "doctors[0].services[1]: there is no service 'Walk'"),
    ("location: North", "location: West", "schedules[0].location: 'West' is not one of this doctor's locations"),
    ("service: Talk}", "service: Look}", "rules[0].service: 'Look' is not one of this doctor's services"),
    (
        "- {patient: pat, doctor",
        "- {patient: nat, doctor",
        "visits[0].patient: there is no patient 'nat'; did you mean",
    ),
    ("doctor: dr.one, day: 1", "doctor: dr.who, day: 1", "visits[0].doctor: there is no doctor 'dr.who'"),
    ("child: Kim Patient", "child: Tim", "visits[1].child: there is no child of 'pat' 'Tim'"),
    # duplicates
    ("pat@example.com", "ONE@example.org", "patients[0].email: 'one@example.org' is here twice, first in line 11"),
    ("+12025550102", "+1-202-555-0101", "patients[0].phone: '+12025550101' is here twice, first in line 12"),
    ("locations: [North, East]", "locations: [North, North]", "doctors[0].locations[1]: 'North' is here twice"),
    ("specialties: [cardiology]", "specialties: [a, a]", "doctors[0].specialties[1]: 'a' is here twice"),
    # overlaps and visits
    (
        "child: Kim Patient, doctor: dr.one, day: 2, slot: 2",
        "doctor: dr.one, day: 2, slot: 2",
        "visits[1]: the patient visits",
    ),
    ("time: 10:30", "slot: 1, time: 10:30", "visits[0]: must have either 'time' or 'slot'"),
    (", time: 10:30", "", "visits[0]: must have either 'time' or 'slot'"),
    (
        "time: 10:30",
        "time: 10:45",
        "visits[0].time: free slots of 'dr.one' on 2026-11-24: 10:00, 10:30, 11:00, 11:30",
    ),
    ("slot: 2", "slot: 3", "visits[1].slot: free slots of 'dr.one' on 2026-11-27: 09:00, 09:30"),
    ("day: 2, slot: 2", "day: 11, slot: 2", "visits[1].day: 'dr.one' has no slots from 2026-12-04 to 2026-12-03"),
    ("day: 1, time", "day: -1, time", "visits[0].day: must be from 0 to 365"),
]


# The same for what makes more wrong than itself: a name that is lost is missed elsewhere.

WRONG_WITH_MORE = [
    ("address: 1 North Road", "adress: 1 North Road", "locations[0].adress: unknown key; did you mean 'address'?"),
    ("day: 1, ", "<<: {day: 1}, ", "visits[0].<<: unknown key"),
    ("locations: [North, East]", "locations: North", "doctors[0].locations: must be a list"),
    ("locations: [North, East]", "locations: []", "doctors[0].locations: must have from 1 to 50 items"),
    ("login: dr.one", "login: Dr One", "doctors[0].login: must be 3 to 64 letters, digits"),
    ("{name: East", "{name: North", "locations[1].name: 'North' is here twice, first in line 3"),
    ("name: Look", "name: Talk", "services[1].name: 'Talk' is here twice, first in line 6"),
    ("login: pat", "login: dr.one", "patients[0].login: 'dr.one' is here twice, first in line 9"),
]


@pytest.mark.parametrize(("old", "new", "told"), WRONG)
def test_one_fault_is_told_alone_and_with_its_line(old: str, new: str, told: str) -> None:
    text = changed(old, new)
    (only,) = faults(text)

    assert_told(only, old, new, told)


@pytest.mark.parametrize(("old", "new", "told"), WRONG_WITH_MORE)
def test_a_fault_is_told_with_its_line_among_its_consequences(old: str, new: str, told: str) -> None:
    (one,) = (fault for fault in faults(changed(old, new)) if told in fault)

    assert_told(one, old, new, told)


def assert_told(fault: str, old: str, new: str, told: str) -> None:
    source, line, what = fault.split(":", 2)
    first = line_of(GOOD, old)
    assert source == "clinic.yaml"
    assert told in what
    assert first <= int(line) <= first + new.count("\n")


def test_a_missing_part_is_told() -> None:
    assert faults("{}") == [
        f"clinic.yaml:1: '{part}' is missing" for part in ("publish", "locations", "services", "doctors")
    ]


def test_overlapping_rules_of_a_doctor_name_each_other() -> None:
    text = changed('weekday: fri\n            start: "09:00"', 'weekday: tue\n            start: "11:50"')
    text = text[: text.index("visits:")]

    (only,) = faults(text)
    assert only == (
        f"clinic.yaml:{line_of(text, 'weekday: tue' + chr(10))}: doctors[0].schedules[0].rules[1]: "
        f"overlaps the rule in line {line_of(text, 'weekday: tue, ')}"
    )


def test_rules_overlap_across_zones() -> None:
    more = """\
      - name: far
        location: East
        rules:
          - {weekday: tue, start: 13:30, slot_minutes: 30, slots: 1}
          - {weekday: tue, start: 10:00, slot_minutes: 30, slots: 4}
"""
    text = changed("patients:\n", more + "patients:\n")

    (only,) = faults(text)
    assert "doctors[0].schedules[1].rules[0]: overlaps" in only  # 13:30 there is 11:30 here


def test_a_patient_is_in_one_place_at_a_time() -> None:
    another = GOOD[GOOD.index("  - login: dr.one") : GOOD.index("patients:")]
    for old, new in (("dr.one", "dr.two"), ("one@", "two@"), ("0101", "0103")):
        another = another.replace(old, new)
    text = changed("patients:\n", another + "patients:\n") + "  - {patient: pat, doctor: dr.two, day: 0, time: 10:30}\n"

    (only,) = faults(text)
    assert "visits[2]: the patient has another visit at that time" in only


def test_every_fault_is_told_at_once_in_the_order_of_lines() -> None:
    text = GOOD
    for old, new in (
        ("Europe/Moscow", "Moscow"),
        ("minutes: 20}", "minutes: 0}"),
        ("one@example.org", "nobody"),
        ("weekday: tue", "weekday: someday"),
        ("1980-02-29", "yesterday"),
        ("day: 1, time", "day: x, time"),
    ):
        text = changed(old, new, text)

    told = faults(text)
    lines = [int(fault.split(":")[1]) for fault in told]
    assert len(told) == 6
    assert lines == sorted(lines)


def test_what_refers_to_a_faulty_part_is_not_called_wrong_too() -> None:
    text = changed("Europe/Moscow", "Moscow")  # the doctor's schedule and both visits need this location
    assert len(faults(text)) == 1


# What is no clinic file at all.


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "clinic.yaml:1: the file is empty"),
        (b"# nothing\n", "clinic.yaml:1: the file is empty"),
        (b"hello", "clinic.yaml:1: must have keys and values: publish, locations, services, doctors"),
        (b"- 1\n", "clinic.yaml:1: must have keys and values: publish, locations, services, doctors"),
        (b"a: b\n  c: d\n", "clinic.yaml:2: not YAML: mapping values are not allowed in this context"),
        (b"a: [1, 2\n", "clinic.yaml:2: not YAML: while parsing a flow sequence"),
        (b"a: 'x\n", "clinic.yaml:2: not YAML: while scanning a quoted scalar"),
        (b"a:\n\t- b\n", "clinic.yaml:2: not YAML: while scanning for the next token"),
        (b"a: 1\nb: \xff\n", "clinic.yaml:2: not UTF-8 text"),
        (b"a: 1\nb: \x01\n", "clinic.yaml:2: not YAML: a character that YAML does not allow"),
        (b"a: 1\n---\nb: 2\n", "clinic.yaml:2: a second document begins here"),
        (b"a: !!python/object/apply:os.system [id]\n", "clinic.yaml:1: tags have no meaning here"),
        (b"a: !!str b\n", "clinic.yaml:1: tags have no meaning here"),
        (b"[a]: b\n", "clinic.yaml:1: a key must be a word"),
        (b"a: *b\n", "clinic.yaml:1: "),
        (b"a: &a [*a]\n", "clinic.yaml:1: the alias *a is inside what it stands for"),
        (b"[" * 100_000, "clinic.yaml:1: nested deeper than 32 levels"),
        (b"{a: " * 100_000, "clinic.yaml:1: nested deeper than 32 levels"),
        (b"x" * (placed_yaml.SIZE_BYTES_MAX + 1), "clinic.yaml:1: the file is larger than 4 MiB"),
        (b"- 1\n" * (placed_yaml.VALUES_MAX + 1), "more than 300000 values"),
        (b"\x7fELF\x02\x01\x01\x00", "clinic.yaml:1: "),
    ],
)
def test_what_is_not_yaml_is_told_in_one_line(content: bytes, told: str) -> None:
    (only,) = faults(content)
    assert told in only


def test_an_alias_bomb_costs_nothing() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))

    before = clock.process_time()
    (only,) = faults(bomb)
    assert "more than 300000 values, aliases followed" in only
    assert clock.process_time() - before < 1


def test_the_parser_without_libyaml_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    expected = clinic()
    monkeypatch.setattr(placed_yaml, "_LOADER", yaml.SafeLoader)

    assert clinic() == expected
    assert faults(b"a: 1\nb: \x01\n") == ["clinic.yaml:2: not YAML: a character that YAML does not allow"]
    assert "tags have no meaning here" in faults(b"a: !!str b\n")[0]


def test_faults_past_the_limit_are_counted() -> None:
    many = placed_fields.FAULTS_MAX + 500
    text = GOOD + "  - {}\n" * many

    told = faults(text)
    assert len(told) == placed_fields.FAULTS_MAX + 1
    assert told[-1].endswith(f"and {4 * many - placed_fields.FAULTS_MAX} faults more")


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)

    with pytest.raises(BadClinic, match="larger than 4 MiB"):
        read(huge, today=TODAY)
