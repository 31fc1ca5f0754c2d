"""Every operation does what ``/openapi.json`` says, whatever is sent to it: schemathesis makes up what to send."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as hypothesis_settings
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)

from api.app import create_app
from api.openapi import describe
from cluster.settings import Settings
from tests.e2e.clinic import Clinic, Server, open_clinic
from tests.people import Person
from tests.serving import serving_api

DOCUMENT = describe(create_app(Settings()))
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)]
ENDLESS = ("GET /v1/doctors/{doctor_id}/changes",)
"""What is answered for as long as somebody listens: see ``test_feed``."""
CALLED = [operation for operation in OPERATIONS if operation.label not in ENDLESS]
EXAMPLES = {GenerationMode.POSITIVE: 12, GenerationMode.NEGATIVE: 6}
SEED = 20261124
ANYWHERE = {404, 405, 414, 431}
"""What a made-up address or header may get at any operation, because it is then another address."""
NO_LIMITS = {"rate_limit": 0, "login_failures_max": 0, "holds_max": 0, "live_appointments_max": 0, "moves_max": 0}
ROLES = ("admin", "doctor", "patient")
PLAUSIBLE: dict[str, list[Any]] = {
    "password": ["Correct-Horse-9"],
    "current_password": ["Correct-Horse-9"],
    "phone": ["+49 30 901820"],
    "birth_date": ["1990-04-12"],
    "locale": ["en", "pt-BR"],
    "timezone": ["Europe/Berlin", "Asia/Yekaterinburg"],
    "currency": ["EUR"],
    "specialties": [["cardiology"], ["therapy", "surgery"]],
    "specialty": ["cardiology"],
    "valid_from": ["2029-12-01"],
    "valid_to": ["2030-12-01"],
    "from": ["2030-01-01"],
    "to": ["2030-01-03"],
    "limit": [1, 7, 200],
    "grant_type": ["password"],
}
UNIQUE = {"login": "user{}", "email": "user{}@mail.example"}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A server with something of everything, and people who call."""

    server: Server
    people: dict[str, Person]
    """Of each role."""
    leaving: Person
    """Who calls what ends an account."""
    values: dict[str, list[Any]]
    """Of parameters and fields, by their names: ids of what there is, and what could be."""


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    new_database: Callable[[], AbstractContextManager[str]],
    settings_over: Callable[[str], Settings],
) -> Iterator[World]:
    with new_database() as database_url:
        settings = settings_over(database_url).model_copy(update=NO_LIMITS)
        with serving_api(settings, tmp_path_factory.mktemp("openapi") / "api.out") as serving:
            yield asyncio.run(_made(Server(serving=serving, settings=settings)))
            assert serving.events("request_failed") == []


async def _made(server: Server) -> World:
    async with open_clinic(server) as clinic:
        anna, leaving, *others = await clinic.people.patients(6)
        doctor, slots = await clinic.doctor_with_slots(60, minutes=20)
        other, elsewhere = await clinic.doctor_with_slots(30, minutes=20)

        async def made(path: str, body: Any, who: Person = clinic.admin) -> Any:
            answer = await clinic.post(who, path, body)
            assert answer.status_code in (200, 201), answer.text
            return answer.json()

        visits = [await made("/v1/appointments", {"slot_id": slot, "reason": "Headaches"}, anna) for slot in slots[:20]]
        holds = [await made("/v1/holds", {"slot_id": slot}, anna) for slot in slots[20:25]]
        service = await made("/v1/admin/services", {"name": "Check-up", "minutes": 20})
        days = {"from": "2030-01-01", "to": "2030-01-02", "reason": "Conference"}
        closure = await made(f"/v1/admin/doctors/{doctor.doctor_id}/closures", days)
        return World(
            server=server,
            people={"patient": anna, "doctor": doctor, "admin": clinic.admin},
            leaving=leaving,
            values={
                **PLAUSIBLE,
                "appointment_id": [visit["id"] for visit in visits],
                "slot_id": [*slots[15:40], *elsewhere],
                "hold_id": [hold["id"] for hold in holds],
                "doctor_id": [doctor.doctor_id, other.doctor_id],
                "location_id": [clinic.location_id],
                "location_ids": [[clinic.location_id]],
                "service_id": [service["id"]],
                "service_ids": [[], [service["id"]]],
                "closure_id": [closure["id"]],
                "patient_id": [anna.patient_id, *(other.patient_id for other in others)],
                "user_id": [other.user_id for other in others],
                "template_id": await _templates(clinic, doctor),
            },
        )


async def _templates(clinic: Clinic, doctor: Person) -> list[str]:
    return [each["id"] for each in await clinic.everything(f"/v1/admin/doctors/{doctor.doctor_id}/templates")]


def test_the_document_is_served(world: World) -> None:
    answer = httpx.get(f"{world.server.serving.url}/openapi.json", trust_env=False)
    assert answer.json() == DOCUMENT
    assert len(OPERATIONS) == sum(len(path) for path in DOCUMENT["paths"].values())


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("number", range(len(CALLED)), ids=[operation.label for operation in CALLED])
def test_an_operation_does_what_it_says(world: World, role: str, number: int) -> None:
    operation = CALLED[number]
    who = world.leaving if operation.label == "DELETE /v1/me" and role == "patient" else world.people[role]
    with requests.Session() as session:
        session.trust_env = False

        def check(case: schemathesis.Case[Any]) -> None:
            _make_sense(world, case)
            response = case.call(
                world.server.serving.url, session, headers=dict(who.headers), timeout=30, allow_redirects=False
            )
            case.validate_response(
                response,
                checks=[content_type_conformance, response_headers_conformance, response_schema_conformance],
            )
            assert response.status_code < 500 or response.status_code == 503, response.text
            documented = {int(status) for status in operation.definition.raw["responses"] if status.isdigit()}
            assert response.status_code in documented | ANYWHERE, response.text

        for mode, examples in EXAMPLES.items():
            if mode is GenerationMode.NEGATIVE and not _takes_anything(operation):
                continue  # There is nothing about it that could be wrong.
            bounded = hypothesis_settings(
                max_examples=examples,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            seed(SEED)(bounded(given(case=operation.as_strategy(generation_mode=mode))(check)))()


def _takes_anything(operation: schemathesis.APIOperation[Any, Any, Any, Any]) -> bool:
    return bool(operation.definition.raw.get("parameters") or operation.definition.raw.get("requestBody"))


def _make_sense(world: World, case: schemathesis.Case[Any]) -> None:
    """In three of four cases, which depends on the case alone, what was made up becomes what exists, or what could."""
    chance = zlib.crc32(repr((case.path_parameters, case.query, case.body)).encode())
    if chance % 4 == 0:
        return
    for container in (case.path_parameters, case.query, case.body):
        if isinstance(container, MutableMapping):
            for name in list(container):
                if values := world.values.get(name):
                    container[name] = values[chance // 4 % len(values)]
                elif name in UNIQUE:
                    container[name] = UNIQUE[name].format(chance)
    for name in list(case.headers or ()):
        if name.lower() == "if-match" and chance % 3:
            del case.headers[name]
        if name.lower() == "prefer" and chance % 3:
            case.headers[name] = "respond-async"
