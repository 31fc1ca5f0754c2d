"""A CSV of real appointment requests, as rows: who asked, when, for which day, at which clinic.

The columns are those of the public "Medical Appointment No Shows" set: PatientId, ScheduledDay, AppointmentDay,
Neighbourhood, No-show; others may be there. A PatientId is taken as it is written. Spreadsheets have rounded the longer
ones (2.98725E+13), so now and then two people share one; they cannot be told apart, and are one patient here.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TextIO
from zoneinfo import ZoneInfo

ZONE = "America/Sao_Paulo"
ROWS_MAX = 1_000_000
COLUMNS = ("PatientId", "ScheduledDay", "AppointmentDay", "Neighbourhood", "No-show")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    patient: str
    asked_at: datetime
    day: date
    clinic: str


class BadCsv(ValueError):
    """The file is not one of appointment requests; the message names the line."""


def read_rows(path: Path) -> list[Row]:
    """The requests in the order in which they were made; those of the same second as they stand in the file.

    Raises:
        BadCsv: it has none, or something is wrong in a line.
        OSError: it cannot be read.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = _parse(file, path.name)
    if not rows:
        raise BadCsv(f"{path.name}: there are no requests in it")
    return sorted(rows, key=lambda row: row.asked_at)


def moved(rows: Iterable[Row], first_day: date) -> list[Row]:
    """The same requests, moved so that their first day becomes that one; days stay as far apart as they were."""
    rows = list(rows)
    by = first_day - min(row.day for row in rows)
    return [Row(patient=row.patient, asked_at=row.asked_at, day=row.day + by, clinic=row.clinic) for row in rows]


def next_day(rows: Iterable[Row], now: datetime) -> date:
    """The first day after today, at the clinics, that is the same weekday as the first day of the requests."""
    first = min(row.day for row in rows)
    tomorrow = now.astimezone(ZoneInfo(ZONE)).date() + timedelta(days=1)
    return tomorrow + timedelta(days=(first.weekday() - tomorrow.weekday()) % 7)


def _parse(file: TextIO, name: str) -> list[Row]:
    lines = csv.DictReader(file, restval="")
    rows: list[Row] = []
    try:
        if missing := [column for column in COLUMNS if column not in (lines.fieldnames or ())]:
            raise ValueError(f"there is no column {', '.join(missing)}")
        for line in lines:
            if len(rows) == ROWS_MAX:
                raise ValueError(f"more than {ROWS_MAX} requests")
            rows.append(_row(line))
    except (ValueError, csv.Error) as error:
        raise BadCsv(f"{name}:{max(1, lines.line_num)}: {error}") from error
    return rows


def _row(line: dict[str, str]) -> Row:
    patient, clinic = line["PatientId"].strip(), " ".join(line["Neighbourhood"].split())
    if not patient or not clinic:
        raise ValueError("PatientId and Neighbourhood must not be empty")
    asked_at = datetime.fromisoformat(line["ScheduledDay"].strip())
    return Row(
        patient=patient,
        asked_at=asked_at if asked_at.tzinfo else asked_at.replace(tzinfo=UTC),
        day=datetime.fromisoformat(line["AppointmentDay"].strip()).date(),
        clinic=clinic,
    )
