"""What the calls about accounts and patients do. Each function is one request: it opens its own units of work.

Passwords are hashed between transactions, never within one: a hash takes longer than a transaction should.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Final

from actors.messages import Role
from api.accounts import schemas
from api.accounts.passwords import Passwords, flaws
from api.dependencies import PageRequest, Principal
from api.errors import Problem, invalid
from api.fields import normal_login, normal_phone
from api.gate import Gate
from api.limits import Limit, Limits
from cluster.bootstrap import Services
from cluster.settings import Settings
from persistence.identifiers import new_id
from persistence.repositories.codes import Purpose
from persistence.repositories.patients import SELF, OwnPatient, Patient, SearchWords, name_words
from persistence.repositories.tokens import Session
from persistence.repositories.users import User
from persistence.sealed import patient_owner, user_owner
from persistence.unit_of_work import UnitOfWork

DAY: Final = timedelta(days=1)
FORGOT_SECONDS: Final = 0.25
"""How long the answer to "forgot" takes, whoever asked for whatever."""
SEARCH_WORDS_MAX: Final = 8
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What someone gets who has signed in."""

    access_token: str
    expires_in: int
    refresh_token: str


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


async def hash_new_password(passwords: Passwords, password: str, *, login: str, pointer: str = "/password") -> str:
    """The hash of a password that is good enough.

    Raises:
        Problem: 422 at ``pointer``, with all that is wrong with it.
    """
    if found := flaws(password, login=login):
        raise Problem("validation_error", errors=[(pointer, flaw) for flaw in found])
    return await passwords.hash(password)


async def register(services: Services, gate: Gate, new: schemas.Registration, *, address: str) -> User:
    """A new patient's account; codes to verify its addresses are on their way.

    Raises:
        Problem: ``rate_limited``, ``login_taken``, ``validation_error``.
    """
    _take(gate.limits, gate.registrations, address)
    if found := flaws(new.password, login=new.login):
        raise Problem("validation_error", errors=[("/password", flaw) for flaw in found])
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
        await _send_code(work, services.settings, user, Purpose.EMAIL)
        await _send_code(work, services.settings, user, Purpose.PHONE)
    return user


async def sign_in(services: Services, gate: Gate, *, username: str, password: str, address: str) -> Tokens:
    """Tokens for who knows the password. Takes as long for a login that nobody has.

    Raises:
        Problem: ``unauthenticated``, ``rate_limited``.
    """
    _take(gate.limits, gate.logins, address)
    login = normal_login(username)
    async with services.unit_of_work() as work:
        user = await work.users.by_login(login)
    await _check_password(services, gate, login, user.password_hash if user else None, password)
    assert user is not None, "nobody's password is never right"
    if user.disabled_at is not None:
        raise Problem("unauthenticated", "This account is disabled.")
    new_hash = await gate.passwords.hash(password) if gate.passwords.outdated(user.password_hash) else None
    session = Session(user_id=user.id, family_id=new_id())
    async with services.unit_of_work() as work:
        if new_hash is not None:
            await work.users.set_password(user.id, new_hash)
        await work.refresh_tokens.tidy(user.id, now=datetime.now(UTC), sessions_max=services.settings.sessions_max)
        refresh_token = await _add_refresh_token(work, services.settings, session)
    return await _tokens(gate, user, session, refresh_token)


async def refresh(services: Services, gate: Gate, refresh_token: str) -> Tokens:
    """New tokens for a refresh token, which is used up; one that was used before ends its whole session.

    Raises:
        Problem: ``unauthenticated``.
    """
    now = datetime.now(UTC)
    token_hash = _token_hash(refresh_token)
    user: User | None = None
    new_token = ""
    async with services.unit_of_work() as work:
        session = await work.refresh_tokens.use(token_hash, now=now)
        if session is not None:
            user = await work.users.get(session.user_id)
            if user is not None and user.disabled_at is None:
                new_token = await _add_refresh_token(work, services.settings, session)
        elif (stolen := await work.refresh_tokens.find(token_hash)) is not None:
            await work.refresh_tokens.revoke_family(stolen.family_id, now=now)
    if session is None or user is None or user.disabled_at is not None:
        raise Problem("unauthenticated", "The refresh token is not good, or not any more.")
    return await _tokens(gate, user, session, new_token)


async def log_out(services: Services, refresh_token: str) -> None:
    """End the session that the token belongs to, if there is one."""
    async with services.unit_of_work() as work:
        session = await work.refresh_tokens.find(_token_hash(refresh_token))
        if session is not None:
            await work.refresh_tokens.revoke_family(session.family_id, now=datetime.now(UTC))


async def verify_email(services: Services, gate: Gate, code: str, *, address: str) -> None:
    """Take an e-mail address as its holder's, who has the code that was sent there.

    Raises:
        Problem: 422, no such code; ``rate_limited``.
        EmailTaken: someone else was first.
    """
    _take(gate.limits, gate.codes, address)
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        user_id = await work.codes.redeem(Purpose.EMAIL, code, now=now)
        user = None if user_id is None else await work.users.get(user_id, lock=True)
        if user is None:
            raise _bad_code()
        await work.users.set_profile(replace(user, email_verified=True), now=now)


async def verify_phone(services: Services, gate: Gate, user_id: str, code: str, *, address: str) -> None:
    """Take a phone number as the user's, who has the code that was sent there.

    Raises:
        Problem: 422, not the code, or too many attempts at it; ``rate_limited``.
        PhoneTaken: someone else was first.
    """
    _take(gate.limits, gate.codes, address)
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        right = await work.codes.redeem_short(
            user_id, Purpose.PHONE, code, now=now, attempts_max=services.settings.phone_code_attempts_max
        )
        if right:
            user = await work.users.get(user_id, lock=True)
            if user is not None:
                await work.users.set_profile(replace(user, phone_verified=True), now=now)
    if not right:  # Raised out here, so that the attempt is kept.
        raise _bad_code()


async def resend(services: Services, gate: Gate, user_id: str, channel: schemas.Channel, *, address: str) -> None:
    """Send another code; the ones before are void. Where there is nothing to verify, nothing is sent.

    Raises:
        Problem: ``rate_limited``.
    """
    _take(gate.limits, gate.codes, address)
    async with services.unit_of_work() as work:
        user = await work.users.get(user_id, lock=True)
        if user is None:
            raise Problem("unauthenticated")
        purpose = Purpose(channel.value)
        known, verified = (
            (user.email, user.email_verified) if purpose is Purpose.EMAIL else (user.phone, user.phone_verified)
        )
        if known and not verified:
            wait_s = await _code_wait_s(work, services.settings, user.id, purpose)
            if wait_s:
                raise Problem("rate_limited", "A code was sent a short while ago.", retry_after_s=wait_s)
            await _send_code(work, services.settings, user, purpose)


async def forgot(services: Services, gate: Gate, asked: schemas.Forgotten, *, address: str) -> None:
    """Send a code to set a new password, to the verified e-mail address of that account if there is one.

    What is answered, and when, tells nothing of whether there is.

    Raises:
        Problem: ``rate_limited``, by the address asked from alone.
    """
    _take(gate.limits, gate.codes, address)
    loop = asyncio.get_running_loop()
    answer_at = loop.time() + FORGOT_SECONDS
    async with services.unit_of_work() as work:
        if asked.login is not None:
            user = await work.users.by_login(asked.login)
        else:
            user = await work.users.by_verified_email(asked.email or "")
        if user is not None and user.email_verified and user.disabled_at is None:
            user = await work.users.get(user.id, lock=True)
            if user is not None and not await _code_wait_s(work, services.settings, user.id, Purpose.PASSWORD):
                await _send_code(work, services.settings, user, Purpose.PASSWORD)
    await asyncio.sleep(answer_at - loop.time())


async def reset_password(services: Services, gate: Gate, reset: schemas.Reset, *, address: str) -> None:
    """Set a new password by a code; every session of the user ends.

    Raises:
        Problem: 422, no such code or not a good password; ``rate_limited``.
    """
    _take(gate.limits, gate.codes, address)
    async with services.unit_of_work() as work:
        user = await _holder(work, reset.code)
    password_hash = await hash_new_password(gate.passwords, reset.password, login=user.login)
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        if await work.codes.redeem(Purpose.PASSWORD, reset.code, now=now) is None:
            raise _bad_code()
        await work.users.set_password(user.id, password_hash)
        await end_sessions(work, user.id)
        await work.audit.record(
            user_id=user.id, role=user.role, action="reset_password", subject="user", subject_ids=[user.id]
        )
    gate.principals.forget(user.id)


async def end_sessions(work: UnitOfWork, user_id: str) -> None:
    """Make every token of a user useless; ``gate.principals.forget`` afterwards makes it so in this process at once."""
    await work.users.end_sessions(user_id)
    await work.refresh_tokens.revoke_all(user_id, now=datetime.now(UTC))


async def get_user(services: Services, user_id: str) -> User:
    """The account.

    Raises:
        Problem: it is gone.
    """
    async with services.unit_of_work() as work:
        return await _user(work, user_id)


async def change_profile(services: Services, gate: Gate, principal: Principal, change: schemas.ProfileChange) -> User:
    """The account with what was to be different; a new address has to be verified anew.

    A new password ends every other session.

    Raises:
        Problem: 422, ``forbidden``, ``rate_limited``.
    """
    if change.name is not None and principal.role is Role.DOCTOR:
        raise Problem("forbidden", "A doctor's name is changed by an administrator.")
    password_hash = None
    if change.password is not None or change.current_password is not None:
        password_hash = await _hash_changed_password(services, gate, principal.user_id, change)
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        user = await work.users.get(principal.user_id, lock=True)
        if user is None:
            raise Problem("unauthenticated")
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
            await _change_code(work, services.settings, changed, Purpose.EMAIL)
        if new_phone:
            await _change_code(work, services.settings, changed, Purpose.PHONE)
        if password_hash is not None:
            await work.users.set_password(user.id, password_hash)
            await work.refresh_tokens.revoke_all(user.id, now=now, but_family=principal.session_id)
            await work.codes.void(user.id, Purpose.PASSWORD, now=now)
            await work.audit.record(
                user_id=user.id, role=user.role, action="change_password", subject="user", subject_ids=[user.id]
            )
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
        if await work.patients.live_appointments(patient_ids, now=now):
            raise Problem("live_appointments")
        await work.patients.erase(patient_ids)
        await work.codes.remove_all(user.id)
        await work.refresh_tokens.revoke_all(user.id, now=now)
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
        if len(await work.patients.of_user(user_id)) >= services.settings.own_patients_max:
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


def _take(limits: Limits, limit: Limit, who: str) -> None:
    wait_s = limits.take(limit, who)
    if wait_s:
        raise Problem("rate_limited", retry_after_s=wait_s)


async def _check_password(services: Services, gate: Gate, login: str, password_hash: str | None, password: str) -> None:
    """Let the right password pass; count a wrong one, whoever has the login."""
    who = services.vault.index("login", login).hex()
    async with gate.passwords.turn() as turn:
        # Looked at when it is this one's turn: of many guesses at once only so many are tried.
        wait_s = gate.limits.wait_s(gate.login_failures, who)
        if wait_s:
            raise Problem("rate_limited", "Too many wrong passwords for this login.", retry_after_s=wait_s)
        if not await turn.verify(password_hash, password):
            gate.limits.add(gate.login_failures, who)
            raise Problem("unauthenticated", "The login or the password is wrong.")


async def _hash_changed_password(services: Services, gate: Gate, user_id: str, change: schemas.ProfileChange) -> str:
    if change.password is None:
        raise invalid("/password", "This should be the new password.")
    if change.current_password is None:
        raise invalid("/current_password", "A new password needs the current one.")
    user = await get_user(services, user_id)
    try:
        await _check_password(services, gate, user.login, user.password_hash, change.current_password)
    except Problem as problem:
        if problem.code == "unauthenticated":
            raise invalid("/current_password", "This is not the current password.") from None
        raise
    return await hash_new_password(gate.passwords, change.password, login=user.login)


async def _user(work: UnitOfWork, user_id: str) -> User:
    user = await work.users.get(user_id)
    if user is None:
        raise Problem("unauthenticated")
    return user


async def _holder(work: UnitOfWork, code: str) -> User:
    user_id = await work.codes.holder(Purpose.PASSWORD, code, now=datetime.now(UTC))
    user = None if user_id is None else await work.users.get(user_id)
    if user is None or user.disabled_at is not None:
        raise _bad_code()
    return user


async def _follow(work: UnitOfWork, patient_id: str, user: User) -> None:
    """Keep the user's own patient like the user."""
    patient = await work.patients.get(patient_id)
    if patient is not None:
        await work.patients.change(replace(patient, name=user.name, phone=user.phone or None))


async def _tokens(gate: Gate, user: User, session: Session, refresh_token: str) -> Tokens:
    access_token = await gate.tokens.sign(
        user_id=user.id, session_id=session.family_id, session_generation=user.session_generation
    )
    return Tokens(access_token=access_token, expires_in=gate.tokens.ttl_s, refresh_token=refresh_token)


async def _add_refresh_token(work: UnitOfWork, settings: Settings, session: Session) -> str:
    token = secrets.token_urlsafe(32)
    now = datetime.now(UTC)
    await work.refresh_tokens.add(
        session,
        token_hash=_token_hash(token),
        issued_at=now,
        expires_at=now + timedelta(seconds=settings.refresh_token_ttl_s),
    )
    return token


def _token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", errors="surrogatepass")).digest()


async def _code_wait_s(work: UnitOfWork, settings: Settings, user_id: str, purpose: Purpose) -> float:
    """How long the user has to wait for the next code; 0: not at all."""
    now = datetime.now(UTC)
    issued = await work.codes.issued(user_id, purpose, since=now - DAY)
    if issued.last_at is None:
        return 0
    age_s = (now - issued.last_at).total_seconds()
    if issued.count >= settings.codes_a_day_max:
        return DAY.total_seconds() - age_s
    return max(0.0, settings.code_interval_s - age_s)


async def _change_code(work: UnitOfWork, settings: Settings, user: User, purpose: Purpose) -> None:
    """Void the codes for the address before, and send one to the new one if it is not too soon for that."""
    if await _code_wait_s(work, settings, user.id, purpose):
        await work.codes.void(user.id, purpose, now=datetime.now(UTC))
    else:
        await _send_code(work, settings, user, purpose)


async def _send_code(work: UnitOfWork, settings: Settings, user: User, purpose: Purpose) -> None:
    short = purpose is Purpose.PHONE
    await work.codes.issue(
        user.id,
        purpose,
        f"{secrets.randbelow(10**6):06d}" if short else secrets.token_urlsafe(24),
        short=short,
        key=work.users.data_key(user),
        now=datetime.now(UTC),
        ttl=timedelta(seconds=settings.phone_code_ttl_s if short else settings.link_ttl_s),
        kept=DAY,
    )


def _bad_code() -> Problem:
    return invalid("/code", "The code is wrong, was used or has expired.")


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
