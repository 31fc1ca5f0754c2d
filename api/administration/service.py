"""What administrators do to the directory and to accounts: each in one transaction, with its trace in the audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from actors.messages import Role
from api.accounts.passwords import hash_new_password
from api.accounts.schemas import UserAnswer
from api.accounts.service import create_user
from api.accounts.sessions import end_sessions
from api.administration import schemas
from api.dependencies import PageRequest, Principal
from api.directory.location_directory import LOCATIONS_MAX, SERVICES_MAX, LocationDirectory
from api.directory.service import page_by_key
from api.errors import Problem
from api.gate import Gate
from cluster.bootstrap import Services
from persistence.identifiers import new_id
from persistence.repositories.audit import AuditEntry
from persistence.repositories.directory import Directory, Doctor, Location, Price, Service
from persistence.repositories.users import User
from persistence.sealed import Unreadable, Vault, place, user_owner
from persistence.unit_of_work import UnitOfWork

OVERRIDE_COLUMN: Final = "override"


class Administration:
    """Serves one request of an administrator's."""

    def __init__(self, services: Services, directory: LocationDirectory, principal: Principal) -> None:
        self._services = services
        self._directory = directory
        self._principal = principal

    # Locations and services

    async def add_location(self, body: schemas.NewLocation) -> Location:
        """Keep a new location.

        Raises:
            Problem: ``limit_reached``.
        """
        location = Location(id=new_id(), name=body.name, address=body.address, timezone=body.timezone)
        async with self._services.unit_of_work() as work:
            directory = Directory(work.connection, work.vault)
            if await directory.count_locations() >= LOCATIONS_MAX:
                raise Problem("limit_reached")
            await directory.add_location(location)
            await self._note(work, "create_location", "location", location.id)
        self._directory.forget()
        return location

    async def change_location(self, location_id: str, change: schemas.LocationChange) -> Location:
        """Write what is different of a location.

        Raises:
            Problem: ``not_found``.
        """
        async with self._services.unit_of_work() as work:
            directory = Directory(work.connection, work.vault)
            location = await directory.location(location_id, lock=True)
            if location is None:
                raise Problem("not_found")
            location = replace(location, **change.model_dump(exclude_unset=True))
            await directory.change_location(location)
            await self._note(work, "change_location", "location", location_id)
        self._directory.forget()
        return location

    async def add_service(self, body: schemas.NewService) -> Service:
        """Keep a new service.

        Raises:
            Problem: ``limit_reached``.
        """
        service = Service(id=new_id(), name=body.name, minutes=body.minutes, price=_price(body.price))
        async with self._services.unit_of_work() as work:
            directory = Directory(work.connection, work.vault)
            if await directory.count_services() >= SERVICES_MAX:
                raise Problem("limit_reached")
            await directory.add_service(service)
            await self._note(work, "create_service", "service", service.id)
        self._directory.forget()
        return service

    async def change_service(self, service_id: str, change: schemas.ServiceChange) -> Service:
        """Write what is different of a service.

        Raises:
            Problem: ``not_found``.
        """
        async with self._services.unit_of_work() as work:
            directory = Directory(work.connection, work.vault)
            service = await directory.service(service_id, lock=True)
            if service is None:
                raise Problem("not_found")
            if "price" in change.model_fields_set:
                service = replace(service, price=_price(change.price))
            service = replace(service, **change.model_dump(exclude_unset=True, exclude={"price"}))
            await directory.change_service(service)
            await self._note(work, "change_service", "service", service_id)
        self._directory.forget()
        return service

    # Doctors

    async def add_doctor(self, gate: Gate, body: schemas.NewDoctor) -> Doctor:
        """Keep a new doctor: an account, an entry in the directory and an empty calendar, all or nothing.

        Raises:
            LoginTaken, EmailTaken, PhoneTaken: someone else has one of these.
            Problem: ``login_taken``, 422.
        """
        async with self._services.unit_of_work() as work:
            await self._check_places(work, body.location_ids, body.service_ids)
            if await work.users.login_taken(body.login):
                raise Problem("login_taken")
        password_hash = await hash_new_password(gate.passwords, body.password, login=body.login)
        doctor = Doctor(
            id=new_id(),
            user_id=new_id(),
            name=body.name,
            specialties=tuple(body.specialties),
            location_ids=tuple(body.location_ids),
            service_ids=tuple(body.service_ids),
        )
        timezone = await self._directory.timezone_of(doctor.location_ids[0])
        async with self._services.unit_of_work() as work:
            user = await create_user(
                work,
                user_id=doctor.user_id,
                doctor_id=doctor.id,
                role=Role.DOCTOR,
                login=body.login,
                password_hash=password_hash,
                name=body.name,
                email=body.email,
                phone=body.phone,
                timezone=timezone,
                verified=True,
            )
            await Directory(work.connection, work.vault).add_doctor(doctor, wrapped_key=user.wrapped_key)
            await self._note(work, "create_doctor", "doctor", doctor.id)
        self._directory.forget()
        return doctor

    async def change_doctor(self, doctor_id: str, change: schemas.DoctorChange) -> Doctor:
        """Write what is different of a doctor; the account has the same name as the entry.

        Raises:
            Problem: ``not_found``, 422.
        """
        async with self._services.unit_of_work() as work:
            directory = Directory(work.connection, work.vault)
            doctor = await directory.doctor(doctor_id, lock=True)
            if doctor is None:
                raise Problem("not_found")
            await self._check_places(work, change.location_ids or (), change.service_ids or ())
            given: dict[str, Any] = change.model_dump(exclude_unset=True)
            for name, value in given.items():
                given[name] = tuple(value) if isinstance(value, list) else value
            doctor = replace(doctor, **given)
            user = await work.users.get(doctor.user_id, lock=True)
            if user is None:
                raise Problem("not_found")
            if change.name is not None:
                await work.users.set_profile(replace(user, name=change.name), now=datetime.now(UTC))
            await directory.change_doctor(doctor, wrapped_key=user.wrapped_key)
            await self._note(work, "change_doctor", "doctor", doctor_id)
        self._directory.forget()
        return doctor

    # Accounts

    async def users(self, page: PageRequest) -> dict[str, Any]:
        """One page of the accounts."""
        after = page.after("users", 2)
        position = None if after is None else (datetime.fromisoformat(after[0]), after[1])
        async with self._services.unit_of_work() as work:
            found = await work.users.page(after=position, limit=page.limit + 1)
        return page_by_key(page, "users", found, key=lambda user: (user.registered_at, user.id), plain=account_plain)

    async def change_user(self, gate: Gate, user_id: str, change: schemas.AccountChange) -> User:
        """Keep a user out or let them in again, make them something else to the clinic.

        Raises:
            Problem: ``not_found``, ``last_admin``, ``not_a_doctor``.
        """
        now = datetime.now(UTC)
        async with self._services.unit_of_work() as work:
            last_admin = await work.users.is_last_admin(user_id)
            user = await work.users.get(user_id, lock=True)
            if user is None:
                raise Problem("not_found")
            role = change.role or user.role
            disabled = (user.disabled_at is not None) if change.disabled is None else change.disabled
            if last_admin and user.role is Role.ADMIN and (disabled or role is not Role.ADMIN):
                raise Problem("last_admin")
            if role is Role.DOCTOR and user.doctor_id is None:
                raise Problem("not_a_doctor")
            if role is not user.role:
                await work.users.set_role(user_id, role, doctor_id=user.doctor_id)
                await self._note(work, f"make_{role.value}", "user", user_id)
            if disabled != (user.disabled_at is not None):
                await work.users.set_disabled(user_id, now if disabled else None)
                await self._note(work, "disable_user" if disabled else "enable_user", "user", user_id)
                if disabled:
                    await end_sessions(work, user_id)
            changed = await work.users.get(user_id)
            assert changed is not None, "locked, so nobody erased it"
        gate.principals.forget(user_id)
        return changed

    # The audit trail

    async def audit(self, page: PageRequest) -> dict[str, Any]:
        """One page of what was done, the last first."""
        after = page.after("audit", 2)
        position = None if after is None else (datetime.fromisoformat(after[0]), after[1])
        async with self._services.unit_of_work() as work:
            found = await work.audit.page(before=position, limit=page.limit + 1)
        vault = self._services.vault
        return page_by_key(
            page, "audit", found, key=lambda entry: (entry.at, entry.id), plain=lambda entry: _entry_plain(vault, entry)
        )

    async def _check_places(self, work: UnitOfWork, location_ids: Sequence[str], service_ids: Sequence[str]) -> None:
        directory = Directory(work.connection, work.vault)
        no_locations = await directory.missing_locations(location_ids)
        no_services = await directory.missing_services(service_ids)
        errors = [
            (f"/{field}/{number}", f"There is no such {kind}.")
            for field, kind, given, missing in (
                ("location_ids", "location", location_ids, no_locations),
                ("service_ids", "service", service_ids, no_services),
            )
            for number, each in enumerate(given)
            if each in missing
        ]
        if errors:
            raise Problem("validation_error", errors=errors)

    async def _note(self, work: UnitOfWork, action: str, subject: str, subject_id: str) -> None:
        await work.audit.record(
            user_id=self._principal.user_id,
            role=self._principal.role,
            action=action,
            subject=subject,
            subject_ids=[subject_id],
        )


def account_plain(user: User) -> dict[str, Any]:
    """An account in JSON, for administrators."""
    return UserAnswer.of(user).model_dump() | {"disabled": user.disabled_at is not None}


def _entry_plain(vault: Vault, entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": entry.at,
        "user_id": entry.user_id,
        "role": entry.role,
        "action": entry.action,
        "subject": entry.subject,
        "subject_id": entry.subject_id,
        "override_reason": unsealed(vault, entry.user_id, entry.wrapped_key, entry.sealed_override, OVERRIDE_COLUMN),
    }


def unsealed(vault: Vault, user_id: str, wrapped_key: bytes | None, sealed: bytes | None, column: str) -> str | None:
    """What a user wrote, as ``api.scheduling.commands.seal_own`` sealed it; ``None`` once the user is erased."""
    if sealed is None:
        return None
    try:
        key = vault.data_key(user_owner(user_id), wrapped_key)
        return key.unseal(sealed, place("app_user", user_id, column)).decode()
    except Unreadable:
        return None


def _price(price: schemas.Price | None) -> Price | None:
    return None if price is None else Price(amount_minor=price.amount_minor, currency=price.currency)
