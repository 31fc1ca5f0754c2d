"""Make the clinic file that a real day needs: `python -m loadtests.replay_clinic day.csv > clinic.yaml`, then
`zapis load clinic.yaml`, then `python -m loadtests.replay day.csv`.

Every neighbourhood of the CSV becomes a location with as many doctors and slots as were asked for there on one day. In
some there is a little less, so that a replay has something to refuse. The same CSV gives the same file.
"""

import argparse
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml

from actors.availability import Weekday
from loadtests.invented import DOCTORS, person
from loadtests.real_day import ZONE, BadCsv, Row, moved, next_day, read_rows

SLOT_MINUTES = 20
SLOTS_PER_DOCTOR = 24
FIRST_SLOT = "08:00"
SERVICE = "Consulta"
PUBLISH_DAYS_MIN = 14
SHORT_EVERY = 8
"""Every so many-th clinic, by name, is short of slots,"""
SHORT_OF = 10
"""by one in so many, and by one at least where there are several."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.replay_clinic", description=__doc__)
    parser.add_argument("csv", type=Path, help="appointment requests")
    parser.add_argument("--day", type=date.fromisoformat, help="the day the replay moves the first day to")
    options = parser.parse_args(arguments)
    now = datetime.now(UTC)
    try:
        rows = read_rows(options.csv)
    except (BadCsv, OSError) as error:
        parser.error(str(error))
    first_day = options.day or next_day(rows, now)
    rows = moved(rows, first_day)
    days = max(PUBLISH_DAYS_MIN, (max(row.day for row in rows) - now.date()).days + 1)
    sys.stdout.write(clinic_yaml(rows, publish_days=days))
    return 0


def clinic_yaml(rows: Sequence[Row], *, publish_days: int) -> str:
    """The text of the clinic file for these requests."""
    supply = _supply(rows)
    clinic: dict[str, Any] = {
        "publish": {"days": publish_days},
        "locations": [
            {"name": name, "address": f"{name.title()}, Vitoria", "timezone": ZONE} for name in sorted(supply)
        ],
        "services": [{"name": SERVICE, "minutes": SLOT_MINUTES}],
        "doctors": _doctors(supply),
    }
    return yaml.safe_dump(clinic, allow_unicode=True, sort_keys=False, width=120)


def _supply(rows: Sequence[Row]) -> dict[str, dict[Weekday, int]]:
    """How many slots each clinic has on each weekday."""
    demand = Counter((row.clinic, row.day) for row in rows)
    supply: dict[str, dict[Weekday, int]] = defaultdict(dict)
    for (clinic, day), asked in demand.items():
        weekday = Weekday.of(day)
        supply[clinic][weekday] = max(asked, supply[clinic].get(weekday, 0))
    for clinic in sorted(supply)[SHORT_EVERY - 1 :: SHORT_EVERY]:
        for weekday, asked in supply[clinic].items():
            supply[clinic][weekday] = asked if asked == 1 else asked - math.ceil(asked / SHORT_OF)
    return supply


def _doctors(supply: dict[str, dict[Weekday, int]]) -> list[dict[str, Any]]:
    doctors: list[dict[str, Any]] = []
    for clinic in sorted(supply):
        for place in range(math.ceil(max(supply[clinic].values()) / SLOTS_PER_DOCTOR)):
            number = len(doctors)
            invented = person(f"doctor-{number + 1:04}", number, areas=DOCTORS)
            rules = [
                {
                    "weekday": weekday.value,
                    "start": FIRST_SLOT,
                    "slot_minutes": SLOT_MINUTES,
                    "slots": min(SLOTS_PER_DOCTOR, slots - place * SLOTS_PER_DOCTOR),
                    "service": SERVICE,
                }
                for weekday, slots in sorted(supply[clinic].items(), key=lambda item: item[0].number)
                if slots > place * SLOTS_PER_DOCTOR
            ]
            doctors.append(
                {
                    "login": invented.login,
                    "name": invented.name,
                    "email": invented.email,
                    "phone": invented.phone,
                    "specialties": ["general practice"],
                    "locations": [clinic],
                    "services": [SERVICE],
                    "schedules": [{"name": "clinic hours", "location": clinic, "rules": rules}],
                }
            )
    return doctors


if __name__ == "__main__":
    sys.exit(main())
