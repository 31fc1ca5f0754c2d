"""Schedule templates, and the slots that are opened from them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any, Final

from fastapi import Request

from actors.availability import (
    DAYS_MAX,
    TEMPLATES_MAX,
    Opening,
    Skipped,
    Template,
    WeeklyRule,
    openings,
)
from actors.messages import NewSlot, PublishSlots
from api.administration import schemas
from api.dependencies import PageRequest, Principal, services_of
from api.directory.location_directory import LocationDirectory
from api.directory.service import page_by_key
from api.errors import Problem, invalid
from api.scheduling import commands
from cluster.rule_overlap import overlapping
from persistence.identifiers import new_id
from persistence.repositories.directory import Directory, ScheduleTemplate, rule_plain

SLOTS_MAX: Final = 5_000
"""Slots that one publication may ask for."""


class Schedules:
    """Serves one request about a doctor's templates."""

    def __init__(self, request: Request, principal: Principal) -> None:
        self._request = request
        self._principal = principal
        self._services = services_of(request)
        self._directory: LocationDirectory = request.app.state.location_directory

    async def add(self, doctor_id: str, body: schemas.NewTemplate) -> ScheduleTemplate:
        """Keep a new template; a service that its slots are for is one that the doctor offers from now on.

        Raises:
            Problem: ``not_found``, ``limit_reached``, 422.
        """
        rules = checked_rules(body)
        template = ScheduleTemplate(
            id=new_id(),
            doctor_id=doctor_id,
            name=body.name,
            location_id=body.location_id,
            valid_from=body.valid_from,
            valid_to=body.valid_to,
            rules=rules,
        )
        async with self._services.unit_of_work() as work:
            directory = Directory(work.connection, work.vault)
            doctor = await directory.doctor(doctor_id, lock=True)
            if doctor is None:
                raise Problem("not_found")
            if body.location_id not in doctor.location_ids:
                raise invalid("/location_id", "This is not one of the doctor's locations.")
            wanted = {rule.service_id for rule in rules if rule.service_id is not None}
            if unknown := await directory.missing_services(wanted):
                raise Problem(
                    "validation_error",
                    errors=[
                        (f"/rules/{number}/service_id", "There is no such service.")
                        for number, rule in enumerate(rules)
                        if rule.service_id in unknown
                    ],
                )
            if await directory.count_templates(doctor_id) >= TEMPLATES_MAX:
                raise Problem("limit_reached", f"A doctor may have {TEMPLATES_MAX} templates at most.")
            await directory.add_template(template)
            await directory.add_services_of_doctor(doctor, wanted)
            await work.audit.record(
                user_id=self._principal.user_id,
                role=self._principal.role,
                action="create_template",
                subject="template",
                subject_ids=[template.id],
            )
        return template

    async def page(self, doctor_id: str, page: PageRequest) -> dict[str, Any]:
        """One page of the doctor's templates.

        Raises:
            Problem: ``not_found``.
        """
        after = page.after("templates", 1)
        async with self._services.unit_of_work() as work:
            directory = Directory(work.connection, work.vault)
            if await directory.doctor(doctor_id) is None:
                raise Problem("not_found")
            found = await directory.templates(doctor_id, after=after[0] if after else None, limit=page.limit + 1)
        return page_by_key(page, "templates", found, key=lambda each: (each.id,), plain=template_plain)

    async def remove(self, doctor_id: str, template_id: str) -> None:
        """Forget a template; the slots that it has opened stay.

        Raises:
            Problem: ``not_found``.
        """
        async with self._services.unit_of_work() as work:
            if not await Directory(work.connection, work.vault).remove_template(template_id, doctor_id=doctor_id):
                raise Problem("not_found")
            await work.audit.record(
                user_id=self._principal.user_id,
                role=self._principal.role,
                action="remove_template",
                subject="template",
                subject_ids=[template_id],
            )

    async def publish(
        self, doctor_id: str, body: schemas.Publication, key: str | None, prefer: str | None
    ) -> dict[str, Any]:
        """Open the slots that the doctor's templates ask for on these days.

        Raises:
            Problem: ``not_found``, 422.
            Rejection, AnsweredPending: the calendar's answer.
        """
        check_days(body.first_day, body.last_day)
        async with self._services.unit_of_work() as work:
            directory = Directory(work.connection, work.vault)
            if await directory.doctor(doctor_id) is None:
                raise Problem("not_found")
            stored = await directory.templates(doctor_id, limit=TEMPLATES_MAX)
        templates = [
            Template(
                id=each.id,
                location_id=each.location_id,
                timezone=await self._directory.timezone_of(each.location_id),
                valid_from=each.valid_from,
                valid_to=each.valid_to,
                rules=each.rules,
            )
            for each in stored
        ]
        # Some 100,000 candidates at worst: too long to keep everybody else waiting.
        opened, skipped = await asyncio.to_thread(_openings, templates, body.first_day, body.last_day)
        command = PublishSlots(
            **commands.header(
                self._request, self._principal, doctor_id=doctor_id, body=body.model_dump(), key=key, prefer=prefer
            ),
            slots=tuple(_new_slot(opening) for opening in opened),
            dry_run=body.dry_run,
        )
        answer = await commands.run(self._services, command, key=key)
        return {
            "opened": answer["opened"],
            "kept": answer["kept"],
            "skipped": merged_skips(skipped, answer["skipped"]),
        }


def checked_rules(body: schemas.NewTemplate) -> tuple[WeeklyRule, ...]:
    """The rules of a template that can be kept.

    Raises:
        Problem: 422, with everything that is wrong with them.
    """
    if body.valid_to is not None and body.valid_to < body.valid_from:
        raise invalid("/valid_to", "This should not be before valid_from.")
    rules: list[WeeklyRule] = []
    errors: list[tuple[str, str]] = []
    for number, each in enumerate(body.rules):
        try:
            rules.append(WeeklyRule(**each.model_dump()))
        except ValueError as error:
            field, _, what = str(error).partition(": ")
            errors.append((f"/rules/{number}/{field}", f"This {what}."))
    if not errors:
        # What a rule does depends on its place only through the zone, and all of these are at one place.
        template = Template(
            id="new",
            location_id="one",
            timezone="UTC",
            valid_from=body.valid_from,
            valid_to=body.valid_to,
            rules=tuple(rules),
        )
        errors = [
            (f"/rules/{later}", f"This overlaps rule {earlier}.")
            for later, earlier in overlapping(
                [(template, rule) for rule in rules], body.valid_from, body.valid_to or body.valid_from
            )
        ]
    if errors:
        raise Problem("validation_error", errors=errors)
    return tuple(rules)


def check_days(first_day: date, last_day: date) -> None:
    """Let a sane range of days pass.

    Raises:
        Problem: 422, it ends before it begins, or is too long.
    """
    if last_day < first_day:
        raise invalid("/to", "This should not be before from.")
    if (last_day - first_day).days >= DAYS_MAX:
        raise invalid("/to", f"The range should have at most {DAYS_MAX} days.")


def merged_skips(skipped: Iterable[Skipped], answered: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the clock or another rule forbids, and what the calendar does not take, by start."""
    told = [{"start": datetime.fromisoformat(each["start"]), "why": each["why"]} for each in answered]
    return sorted(
        [*told, *({"start": each.start, "why": each.why} for each in skipped)], key=lambda each: each["start"]
    )


def template_plain(template: ScheduleTemplate) -> dict[str, Any]:
    """A template in JSON."""
    return {
        "id": template.id,
        "doctor_id": template.doctor_id,
        "name": template.name,
        "location_id": template.location_id,
        "valid_from": template.valid_from,
        "valid_to": template.valid_to,
        "rules": [rule_plain(rule) for rule in template.rules],
    }


def _openings(
    templates: Sequence[Template], first_day: date, last_day: date
) -> tuple[Sequence[Opening], Sequence[Skipped]]:
    too_many = invalid("/to", f"The templates ask for more than {SLOTS_MAX} slots on these days: take fewer days.")
    valid = [each for each in templates if each.valid_from <= last_day and (each.valid_to or last_day) >= first_day]
    try:
        opened, skipped = openings(valid, first_day, last_day)
    except ValueError:
        raise too_many from None
    if len(opened) + len(skipped) > SLOTS_MAX:
        raise too_many
    return opened, skipped


def _new_slot(opening: Opening) -> NewSlot:
    return NewSlot(
        id=new_id(),
        start=opening.start,
        end=opening.end,
        location_id=opening.location_id,
        service_id=opening.service_id,
    )
