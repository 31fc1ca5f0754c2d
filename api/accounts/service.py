"""What the calls about accounts and patients do. Each function is one request: it opens its own units of work.

Passwords are hashed between transactions, never within one: a hash takes longer than a transaction should.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Final

from actors.messages import Role
from api.accounts import schemas
from api.accounts.passwords import check_new_password, hash_new_password
from api.accounts.sessions import check_password, end_sessions
from api.accounts.verification import change_code, send_code
from api.dependencies import PageRequest, Principal
from api.errors import Problem, invalid
from api.gate import Gate
from cluster.bootstrap import Services
from persistence.identifiers import new_id
from persistence.normal_forms import normal_phone
from persistence.repositories.codes import Purpose
from persistence.repositories.notifications import Notifications
from persistence.repositories.patients import SELF, OwnPatient, Patient, SearchWords, name_words
from persistence.repositories.push_subscriptions import PushSubscriptions
from persistence.repositories.users import User
from persistence.sealed import patient_owner, user_owner
from persistence.unit_of_work import UnitOfWork

SEARCH_WORDS_MAX: Final = 8
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


async def create_user(
    work: UnitOfWork,
    *,
    login: str,
    password_hash: str,
    name: str,
    email: str = "",
    phone: str = "",
    role: Role = Role.PATIENT,
    birth_date: date | None = None,
    locale: str = "en",
    timezone: str = "UTC",
    doctor_id: str | None = None,
    verified: bool = False,
    user_id: str | None = None,
) -> User:
    """A new account; with a birth date also its own patient. All in their normal forms (``api.fields``).

    ``verified``: an administrator vouches for the addresses.

    Raises:
        LoginTaken, EmailTaken, PhoneTaken: the latter two only for ``verified`` ones.
    """
    now = datetime.now(UTC)
    user_id = user_id or new_id()
    patient_id = new_id() if birth_date is not None else None
    user = await work.users.add(
        user_id=user_id,
        role=role,
        login=login,
        password_hash=password_hash,
        name=name,
        email=email,
        phone=phone,
        locale=locale,
        timezone=timezone,
        patient_id=patient_id,
        doctor_id=doctor_id,
        now=now,
        verified=verified,
    )
    if patient_id is not None and birth_date is not None:
        await work.patients.add(Patient(id=patient_id, name=name, birth_date=birth_date, phone=phone or None), now=now)
        await work.patients.link(user_id, patient_id, SELF)
    return user


async def register(services: Services, gate: Gate, new: schemas.Registration, *, address: str) -> User:
    """A new patient's account; codes to verify its addresses are on their way.

    Raises:
        Problem: ``rate_limited``, ``login_taken``, ``validation_error``.
    """
    gate.limits.admit(gate.registrations, address)
    check_new_password(new.password, login=new.login)
    async with services.unit_of_work() as work:
        if await work.users.login_taken(new.login):
            raise Problem("login_taken")
    password_hash = await gate.passwords.hash(new.password)
    async with services.unit_of_work() as work:
        user = await create_user(
            work,
            login=new.login,
            password_hash=password_hash,
            name=new.name,
            email=new.email,
            phone=new.phone,
            birth_date=new.birth_date,
            locale=new.locale,
            timezone=new.timezone,
        )
        await send_code(work, services, gate, user, Purpose.EMAIL, address=address)
        await send_code(work, services, gate, user, Purpose.PHONE, address=address)
    return user


async def get_user(services: Services, user_id: str) -> User:
    """The account.

    Raises:
        Problem: it is gone.
    """
    async with services.unit_of_work() as work:
        return await _user(work, user_id)


async def change_profile(
    services: Services, gate: Gate, principal: Principal, change: schemas.ProfileChange, *, address: str
) -> User:
    """The account with what was to be different; a new address has to be verified anew.

    A new password ends every other session, and every access token: the caller's refresh token gives a new one.

    Raises:
        Problem: 422, ``forbidden``, ``rate_limited``.
    """
    if change.name is not None and principal.role is Role.DOCTOR:
        raise Problem("forbidden", "A doctor's name is changed by an administrator.")
    known_hash = password_hash = None
    if change.password is not None or change.current_password is not None:
        known_hash, password_hash = await _hash_changed_password(services, gate, principal.user_id, change)
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        user = await work.users.get(principal.user_id, lock=True)
        if user is None:
            raise Problem("unauthenticated")
        if known_hash is not None and user.password_hash != known_hash:  # It was set anew while it was looked at.
            raise _not_the_password()
        changed = replace(
            user,
            name=change.name or user.name,
            email=change.email or user.email,
            phone=change.phone or user.phone,
            locale=change.locale or user.locale,
            timezone=change.timezone or user.timezone,
        )
        new_email, new_phone = changed.email != user.email, changed.phone != user.phone
        changed = replace(
            changed,
            email_verified=user.email_verified and not new_email,
            phone_verified=user.phone_verified and not new_phone,
        )
        if changed != user:
            await work.users.set_profile(changed, now=now)
        if user.patient_id is not None and (changed.name != user.name or new_phone):
            await _follow(work, user.patient_id, changed)
        if new_email:
            await work.codes.void(user.id, Purpose.PASSWORD, now=now)
            await change_code(work, services, gate, changed, Purpose.EMAIL, address=address)
        if new_phone:
            await change_code(work, services, gate, changed, Purpose.PHONE, address=address)
        if password_hash is not None:
            await work.users.set_password(user.id, password_hash)
            await end_sessions(work, user.id, but_family=principal.session_id)
            await work.codes.void(user.id, Purpose.PASSWORD, now=now)
            await work.audit.record(
                user_id=user.id, role=user.role, action="change_password", subject="user", subject_ids=[user.id]
            )
    if password_hash is not None:
        gate.principals.forget(principal.user_id)
    return changed


async def erase(services: Services, gate: Gate, principal: Principal) -> None:
    """Erase the account, its own patient, and the patients that nobody else may book for.

    Their data keys are destroyed: what was sealed under them is unreadable, wherever it is. Visits stay in the journal,
    of someone who is not known any more.

    Raises:
        Problem: ``live_appointments``, ``forbidden`` for staff, whom an administrator disables.
    """
    if principal.staff:
        raise Problem("forbidden", "A staff account is ended by an administrator.")
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        user = await work.users.get(principal.user_id, lock=True)
        if user is None:
            raise Problem("unauthenticated")
        patient_ids = await work.patients.only_of(user.id)
        await work.patients.lock(patient_ids)
        if await work.patients.live_appointments(patient_ids, now=now):
            raise Problem("live_appointments")
        await work.patients.erase(patient_ids)
        await work.codes.remove_all(user.id)
        await work.refresh_tokens.revoke_all(user.id, now=now)
        await work.users.forget_devices(user.id)
        await Notifications(work.connection).forget_preferences(user.id)
        await PushSubscriptions(work.connection, work.vault).remove_all(user.id)
        await work.users.erase(user.id, now=now)
        await work.audit.record(user_id=user.id, role=user.role, action="erase", subject="user", subject_ids=[user.id])
    gate.principals.forget(user.id)
    services.vault.forget({user_owner(user.id), *map(patient_owner, patient_ids)})


async def own_patients(services: Services, user_id: str) -> list[OwnPatient]:
    """Whom the user may book for."""
    async with services.unit_of_work() as work:
        return await work.patients.of_user(user_id)


async def add_patient(services: Services, gate: Gate, user_id: str, new: schemas.NewPatient) -> OwnPatient:
    """Someone else to book for.

    Raises:
        Problem: ``limit_reached``.
    """
    patient = Patient(id=new_id(), name=new.name, birth_date=new.birth_date, phone=new.phone)
    async with services.unit_of_work() as work:
        if await work.users.get(user_id, lock=True) is None:
            raise Problem("unauthenticated")
        if 0 < services.settings.own_patients_max <= len(await work.patients.of_user(user_id)):
            raise Problem("limit_reached", "There are as many patients as one user may book for.")
        await work.patients.add(patient, now=datetime.now(UTC))
        await work.patients.link(user_id, patient.id, new.relation)
    gate.principals.forget(user_id)
    return OwnPatient(patient=patient, relation=new.relation)


async def find_patients(
    services: Services, principal: Principal, query: str, page: PageRequest
) -> tuple[list[Patient], str | None]:
    """Patients whose name has all these words, or who have this phone number or birth date; each one shown is audited.

    Raises:
        Problem: 422, there is nothing to search for.
    """
    words = _search_words(query)
    if not words:
        raise invalid("/query/q", "This should be words of a name, a birth date or a phone number.")
    after = page.after("patients", 1)
    async with services.unit_of_work() as work:
        found = await work.patients.search(words, after=after[0] if after else None, limit=page.limit + 1)
        shown = found[: page.limit]
        await work.audit.record(
            user_id=principal.user_id,
            role=principal.role,
            action="search_patients",
            subject="patient",
            subject_ids=[patient.id for patient in shown] or [None],
        )
    return shown, page.next_cursor("patients", [shown[-1].id]) if len(found) > page.limit else None


async def _hash_changed_password(
    services: Services, gate: Gate, user_id: str, change: schemas.ProfileChange
) -> tuple[str, str]:
    """The hash of the password that was given as the current one, and that of the new one."""
    if change.password is None:
        raise invalid("/password", "This should be the new password.")
    if change.current_password is None:
        raise invalid("/current_password", "A new password needs the current one.")
    user = await get_user(services, user_id)
    try:
        await check_password(services, gate, user.login, user.password_hash, change.current_password)
    except Problem as problem:
        if problem.code == "unauthenticated":
            raise _not_the_password() from None
        raise
    return user.password_hash, await hash_new_password(gate.passwords, change.password, login=user.login)


def _not_the_password() -> Problem:
    return invalid("/current_password", "This is not the current password.")


async def _user(work: UnitOfWork, user_id: str) -> User:
    user = await work.users.get(user_id)
    if user is None:
        raise Problem("unauthenticated")
    return user


async def _follow(work: UnitOfWork, patient_id: str, user: User) -> None:
    """Keep the user's own patient like the user."""
    patient = await work.patients.get(patient_id)
    if patient is not None:
        await work.patients.change(replace(patient, name=user.name, phone=user.phone or None))


def _search_words(query: str) -> SearchWords:
    phone = normal_phone(query)
    if phone is not None:
        return SearchWords(phones=(phone,))
    names: list[str] = []
    birth_dates: list[date] = []
    phones: list[str] = []
    for word in query.split()[:SEARCH_WORDS_MAX]:
        if (number := normal_phone(word)) is not None:
            phones.append(number)
        elif _DATE.fullmatch(word) is not None:
            try:
                birth_dates.append(date.fromisoformat(word))
            except ValueError:
                raise invalid("/query/q", "This is not a date that there is.") from None
        else:
            names.extend(name_words(word))
    return SearchWords(names=tuple(names), birth_dates=tuple(birth_dates), phones=tuple(phones))
