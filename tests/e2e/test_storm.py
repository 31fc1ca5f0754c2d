"""Everybody at once: hundreds of clients over real HTTP who want the same, and exactly one of whom gets it."""

from __future__ import annotations

from collections import Counter

import httpx
import pytest

from tests.e2e.clinic import LONG, Server, open_clinic

CLIENTS = 500
RUNS = 3 if LONG else 1


@pytest.mark.parametrize("run", range(RUNS))
async def test_500_clients_race_for_20_slots(server: Server, run: int) -> None:
    async with open_clinic(server) as clinic:
        doctor, slots = await clinic.doctor_with_slots(20)
        patients = await clinic.people.patients(CLIENTS)

        answers = await clinic.post_at_once(
            [
                (patient, "/v1/appointments", {"slot_id": slots[number % len(slots)]})
                for number, patient in enumerate(patients)
            ]
        )

        assert Counter(_outcome(answer) for answer in answers) == {"201": 20, "409 slot_taken": CLIENTS - 20}
        won = {answer.json()["slot_id"]: answer.json() for answer in answers if answer.status_code == 201}
        assert won.keys() == set(slots)
        assert await clinic.visits([doctor]) == {visit["id"]: visit for visit in won.values()}
        await clinic.check_journal()


@pytest.mark.parametrize("run", range(RUNS))
async def test_500_clients_race_for_one_patients_time(server: Server, run: int) -> None:
    """Ten doctors have a slot of an hour each, two minutes apart: a patient can be at one of them."""
    async with open_clinic(server) as clinic:
        offers = [await clinic.doctor_with_slots(1, minutes=60, start=f"09:{2 * number:02}") for number in range(10)]
        patient = await clinic.people.patient()
        # The patient in many tabs, and the front desk, all of them trying to be helpful.
        callers = [(patient, {}), (clinic.admin, {"patient_id": patient.patient_id})]
        commands = []
        for number in range(CLIENTS):
            who, for_whom = callers[number // len(offers) % 2]
            _, (slot,) = offers[number % len(offers)]
            commands.append((who, "/v1/appointments", {"slot_id": slot} | for_whom))

        answers = await clinic.post_at_once(commands)

        (won,) = [number for number, answer in enumerate(answers) if answer.status_code == 201]
        for number, answer in enumerate(answers):
            if number % 10 != won % 10:
                assert _outcome(answer) == "409 patient_overlap"
            elif number != won:
                assert _outcome(answer) == "409 slot_taken"
        assert len(await clinic.visits([doctor for doctor, _ in offers])) == 1
        await clinic.check_journal()


@pytest.mark.parametrize("run", range(RUNS))
async def test_the_same_command_20_times_at_once(server: Server, run: int) -> None:
    async with open_clinic(server) as clinic:
        doctor, (one, two, _) = await clinic.doctor_with_slots(3)
        other, (elsewhere, *_) = await clinic.doctor_with_slots(1)
        patient = await clinic.people.patient()

        async def twenty(path: str, slot: str) -> httpx.Response:
            body = {"slot_id": slot}
            answers = await clinic.post_at_once([(patient, path, body)] * 20, key=path + slot)
            assert {(answer.status_code, answer.content) for answer in answers} == {
                (answers[0].status_code, answers[0].content)
            }
            assert answers[0].status_code in (200, 201), answers[0].text
            return answers[0]

        visit = (await twenty("/v1/appointments", one)).json()
        for version, slot in enumerate((two, elsewhere, one), start=2):
            moved = (await twenty(f"/v1/appointments/{visit['id']}/reschedule", slot)).json()
            assert (moved["id"], moved["slot_id"], moved["version"]) == (visit["id"], slot, version)
        assert list(await clinic.visits([doctor, other])) == [visit["id"]]
        await clinic.check_journal()


def _outcome(answer: httpx.Response) -> str:
    return str(answer.status_code) if answer.status_code == 201 else f"{answer.status_code} {answer.json()['code']}"
