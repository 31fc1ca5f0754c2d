"""People using a running zapis: `locust -f loadtests/locustfile.py --host http://127.0.0.1:8000`.

Patients register, look for free slots of a specialty, hold one, book it, sometimes move or cancel the visit, and see
what is to come. Doctors look at their day. For doctors to log in, name them in the environment: LOCUST_DOCTORS, as
``login:password`` separated by spaces; without it there are patients only. The server wants ZAPIS_RATE_LIMIT=0, since
all of this comes from one address.

Answers that belong to the game (someone was quicker) count as successes. Anything else but the expected status is a
failure.
"""

from __future__ import annotations

import os
import random
import secrets
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final

from locust import FastHttpUser, between, task
from locust.env import Environment
from locust.exception import StopUser

from loadtests.invented import PATIENTS, person

PASSWORD: Final = "Load-Test-2026"
LIVE_MAX: Final = 3
"""Visits a patient has at most, so that nobody runs into a limit."""
LOST_RACES: Final = frozenset({"slot_taken", "slot_unavailable", "patient_overlap", "hold_expired"})
DOCTORS: Final = [pair.partition(":")[::2] for pair in os.environ.get("LOCUST_DOCTORS", "").split()]

Json = dict[str, Any]
_numbers = count()


class Caller(FastHttpUser):
    """Somebody with an account."""

    abstract = True
    wait_time = between(0.5, 3.0)

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._headers: dict[str, str] = {}

    def log_in(self, login: str, password: str) -> None:
        """From now on calls carry this user's token."""
        form = {"grant_type": "password", "username": login, "password": password}
        with self.client.post("/v1/auth/token", data=form, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code} {_code(answer)}")
                raise StopUser
            self._headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def call(
        self, method: str, path: str, *, name: str = "", expect: int = 200, body: Json | None = None
    ) -> Json | None:
        """The answer's content; ``None`` where a race was lost or the call failed."""
        headers = dict(self._headers)
        if method == "POST":
            headers["Idempotency-Key"] = secrets.token_urlsafe(16)
        with self.client.request(
            method, path, name=name or path, json=body, headers=headers, catch_response=True
        ) as answer:
            if answer.status_code == expect:
                content: Json = answer.json()
                return content
            if answer.status_code == 409 and _code(answer) in LOST_RACES:
                answer.success()
            else:
                answer.failure(f"{answer.status_code} {_code(answer)}")
            return None


class Patient(Caller):
    """Looks for a time that suits, and mostly keeps it."""

    weight = 20

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._visits: list[Json] = []
        self._specialties: list[str] = []

    def on_start(self) -> None:
        """A new account."""
        new = person(f"locust-{secrets.token_hex(8)}", next(_numbers), areas=PATIENTS)
        body = {
            "login": new.login,
            "password": PASSWORD,
            "name": new.name,
            "birth_date": new.birth_date.isoformat(),
            "email": new.email,
            "phone": new.phone,
        }
        if self.call("POST", "/v1/auth/register", expect=201, body=body) is None:
            raise StopUser
        self.log_in(new.login, PASSWORD)
        self._specialties = (self.call("GET", "/v1/specialties") or {}).get("items", [])
        if not self._specialties:
            raise StopUser

    @task(10)
    def look_around(self) -> None:
        """Only look."""
        self._free_slot()

    @task(5)
    def hold_and_book(self) -> None:
        """Keep a slot, think about it, book it."""
        slot = self._free_slot() if len(self._visits) < LIVE_MAX else None
        if slot is None:
            return
        hold = self.call("POST", "/v1/holds", expect=201, body={"slot_id": slot["id"]})
        if hold is None:
            return
        self.wait()  # type: ignore[no-untyped-call]  # locust's
        body = {"slot_id": slot["id"], "hold_id": hold["id"], "reason": "A check-up"}
        self._keep(self.call("POST", "/v1/appointments", name="/v1/appointments (held)", expect=201, body=body))

    @task(5)
    def book(self) -> None:
        """Book at once."""
        slot = self._free_slot() if len(self._visits) < LIVE_MAX else None
        if slot is not None:
            self._keep(self.call("POST", "/v1/appointments", expect=201, body={"slot_id": slot["id"]}))

    @task(2)
    def move(self) -> None:
        """To another time, perhaps with another doctor."""
        slot = self._free_slot() if self._visits else None
        if slot is None:
            return
        visit = self._visits.pop(random.randrange(len(self._visits)))
        path = f"/v1/appointments/{visit['id']}/reschedule"
        name = "/v1/appointments/{id}/reschedule"
        # Once moved, a visit is left alone: it may not be moved as often as one likes.
        self.call("POST", path, name=name, body={"slot_id": slot["id"]})

    @task(2)
    def cancel(self) -> None:
        """Think better of it."""
        if self._visits:
            visit = self._visits.pop(random.randrange(len(self._visits)))
            self.call("POST", f"/v1/appointments/{visit['id']}/cancel", name="/v1/appointments/{id}/cancel", body={})

    @task(5)
    def what_is_to_come(self) -> None:
        """One's own visits."""
        self.call("GET", "/v1/appointments?status=booked,rescheduled", name="/v1/appointments (own)")

    def _free_slot(self) -> Json | None:
        specialty = random.choice(self._specialties)
        found = self.call("GET", f"/v1/slots?specialty={specialty}", name="/v1/slots?specialty=")
        items: list[Json] = (found or {}).get("items", [])
        return random.choice(items) if items else None

    def _keep(self, visit: Json | None) -> None:
        if visit is not None:
            self._visits.append(visit)


class Doctor(Caller):
    """Looks at the day."""

    weight = 1 if DOCTORS else 0

    def on_start(self) -> None:
        """One of the doctors that were named."""
        self.log_in(*random.choice(DOCTORS))

    @task
    def the_day(self) -> None:
        """Today's visits."""
        today = datetime.now(UTC).date()
        self.call("GET", f"/v1/appointments?from={today}&to={today}", name="/v1/appointments (a doctor's day)")


def _code(answer: Any) -> str:
    """What a problem is called."""
    try:
        return str(answer.json()["code"])
    except (ValueError, KeyError, TypeError):
        return ""
