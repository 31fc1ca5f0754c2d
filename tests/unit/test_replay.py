"""A real day: reading it, moving it, the clinics it needs, and the summary."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

import phonenumbers
import pytest

from actors.availability import openings
from cluster.clinic import parse
from loadtests import replay, replay_clinic
from loadtests.invented import DOCTORS, PATIENTS, person
from loadtests.real_day import BadCsv, Row, moved, next_day, read_rows
from loadtests.replay import Summary, percentile_ms

HEADER = "PatientId,AppointmentID,ScheduledDay,AppointmentDay,Neighbourhood,No-show\n"
LINES = """\
2.98725E+13,1,2016-04-29T18:38:08Z,2016-04-29T00:00:00Z,JARDIM DA PENHA,No
99948393975,2,2016-04-29T16:08:27Z,2016-04-29T00:00:00Z,RESISTÊNCIA,Yes
2.98725E+13,3,2016-04-01T16:08:27Z,2016-05-02T00:00:00Z,JARDIM  DA PENHA,No
4.26296E+12,4,2016-04-29T16:08:27Z,2016-04-29T00:00:00Z,RESISTÊNCIA,No
"""
FRIDAY = date(2026, 11, 27)


def csv(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "day.csv"
    path.write_text(text, encoding=encoding)
    return path


def row(patient: str, clinic: str, day: date = FRIDAY) -> Row:
    return Row(patient=patient, asked_at=datetime(2026, 1, 1, tzinfo=UTC), day=day, clinic=clinic)


def test_rows_come_in_the_order_in_which_they_were_asked(tmp_path: Path) -> None:
    rows = read_rows(csv(tmp_path, HEADER + LINES, "utf-8-sig"))

    assert [one.patient for one in rows] == ["2.98725E+13", "99948393975", "4.26296E+12", "2.98725E+13"]
    assert rows[0] == Row(
        patient="2.98725E+13",
        asked_at=datetime(2016, 4, 1, 16, 8, 27, tzinfo=UTC),
        day=date(2016, 5, 2),
        clinic="JARDIM DA PENHA",
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"day\.csv:1: there is no column PatientId, ScheduledDay"),
        ("a,b\n1,2\n", r"day\.csv:1: there is no column"),
        (HEADER, r"day\.csv: there are no requests in it"),
        (HEADER + LINES.replace("2016-04-29T16:08:27Z", "yesterday", 1), r"day\.csv:3: Invalid isoformat"),
        (HEADER + "1,2\n", r"day\.csv:2: PatientId and Neighbourhood must not be empty"),
        (HEADER + LINES.replace("RESISTÊNCIA", " ", 1), r"day\.csv:3: PatientId and Neighbourhood must not be empty"),
        (HEADER + "1,2,3," + "x" * 200_000, "field larger than field limit"),
    ],
)
def test_a_csv_that_is_no_real_day_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadCsv, match=told):
        read_rows(csv(tmp_path, text))


def test_a_csv_in_another_encoding_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadCsv, match="utf-8"):
        read_rows(csv(tmp_path, HEADER + LINES, "latin-1"))


def test_days_are_moved_together(tmp_path: Path) -> None:
    rows = moved(read_rows(csv(tmp_path, HEADER + LINES)), FRIDAY)

    assert sorted(one.day for one in rows) == [FRIDAY, FRIDAY, FRIDAY, date(2026, 11, 30)]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (datetime(2026, 11, 26, 12, tzinfo=UTC), date(2026, 11, 27)),
        (datetime(2026, 11, 27, 12, tzinfo=UTC), date(2026, 12, 4)),
        (datetime(2026, 11, 27, 1, tzinfo=UTC), date(2026, 11, 27)),  # it is still the 26th in Vitoria
    ],
)
def test_the_next_such_weekday_is_after_today_there(now: datetime, expected: date) -> None:
    assert next_day([row("p", "c", date(2016, 4, 29))], now) == expected


def test_the_clinics_have_what_the_day_needs_and_a_few_less() -> None:
    asked = Counter({f"CLINIC {number:02}": number for number in range(1, 61)})
    rows = [row(f"p{index}", clinic) for index, clinic in enumerate(asked.elements())]

    text = replay_clinic.clinic_yaml(rows, publish_days=14)
    clinic = parse(text.encode(), source="day.yaml", today=date(2026, 11, 23))

    assert text == replay_clinic.clinic_yaml(rows[::-1], publish_days=14)
    assert {location.timezone for location in clinic.locations} == {"America/Sao_Paulo"}
    supply: Counter[str] = Counter()
    for doctor in clinic.doctors:
        for slot in openings(doctor.schedules, FRIDAY, FRIDAY)[0]:
            supply[slot.location_id] += 1
    short = {name: asked[name] - supply[name] for name in asked if supply[name] != asked[name]}
    assert short == {f"CLINIC {number:02}": -(-number // 10) for number in (8, 16, 24, 32, 40, 48, 56)}


def test_a_week_of_requests_gets_a_rule_for_each_weekday() -> None:
    rows = [row("p1", "A"), row("p2", "A", date(2026, 11, 30)), row("p3", "A", date(2026, 11, 30))]

    clinic = parse(
        replay_clinic.clinic_yaml(rows, publish_days=14).encode(), source="day.yaml", today=date(2026, 11, 23)
    )

    (doctor,) = clinic.doctors
    assert [(rule.weekday.value, rule.slots) for rule in doctor.schedules[0].rules] == [("mon", 2), ("fri", 1)]


def test_the_generator_prints_a_file_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay_clinic.main([str(csv(tmp_path, HEADER + LINES)), "--day", "2026-12-25"]) == 0

    clinic = parse(capsys.readouterr().out.encode(), source="day.yaml", today=date(2026, 11, 23))
    assert [location.name for location in clinic.locations] == ["JARDIM DA PENHA", "RESISTÊNCIA"]


@pytest.mark.parametrize("command", [replay.main, replay_clinic.main])
def test_a_csv_that_is_not_there_ends_the_command(
    command: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command([str(tmp_path / "none.csv")])
    assert ended.value.code == 2
    assert "none.csv" in capsys.readouterr().err


def test_invented_people_have_numbers_of_their_own() -> None:
    doctors = {person("x", number, areas=DOCTORS).phone for number in range(800)}
    patients = {person("x", number, areas=PATIENTS).phone for number in range(3000)}

    assert len(doctors) == 800
    assert len(patients) == 3000
    assert not doctors & patients
    assert all(phonenumbers.is_valid_number(phonenumbers.parse(phone)) for phone in doctors | patients)
    assert all("55501" in phone for phone in doctors | patients)


def test_the_summary_adds_up() -> None:
    summary = Summary(first_day=FRIDAY, requests=10, patients=8, clinics=2, registered=8, booked=7, duration_s=2.0)
    summary.refused.update(["no_free_slot", "no_free_slot", "limit_reached"])
    summary.calls["POST /v1/appointments"] += [0.001 * number for number in range(1, 101)]

    assert summary.complete
    assert summary.lines()[:7] == [
        "requests         10  8 patients, 2 clinics, 2026-11-27",
        "registered        8",
        "booked            7",
        "refused           3  limit_reached 1, no_free_slot 2",
        "unanswered        0",
        "                     booked + refused = 10 of 10",
        "duration        2.0  s, 3.5 bookings/s",
    ]
    assert summary.lines()[-1].split() == ["book", "100", "50.0", "99.0"]
    summary.unanswered = 1
    assert not summary.complete


def test_percentiles_by_the_nearest_rank() -> None:
    assert percentile_ms([], 50) == "-"
    assert percentile_ms([0.001], 99) == "1.0"
    assert percentile_ms([0.001, 0.002], 50) == "1.0"
