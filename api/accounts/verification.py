"""Codes that were sent: to verify an address, or to set a new password.

Whatever sends, redeems or voids a code locks its user first: two requests of one user never wait for each other.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from api.accounts import schemas
from api.accounts.passwords import hash_new_password
from api.accounts.sessions import end_sessions
from api.errors import Problem, invalid
from api.gate import Gate
from cluster.bootstrap import Services
from cluster.settings import Settings
from persistence.normal_forms import mailbox
from persistence.repositories.codes import Purpose
from persistence.repositories.users import User
from persistence.unit_of_work import UnitOfWork

DAY: Final = timedelta(days=1)
FORGOT_SECONDS: Final = 0.25
"""How long the answer to "forgot" takes, whoever asked for whatever."""


async def verify_email(services: Services, gate: Gate, code: str, *, address: str) -> None:
    """Take an e-mail address as its holder's, who has the code that was sent there.

    Raises:
        Problem: 422, no such code; ``rate_limited``.
        EmailTaken: someone else was first.
    """
    gate.limits.admit(gate.codes, address)
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        user = await _holder(work, Purpose.EMAIL, code, lock=True)
        await _redeem(work, Purpose.EMAIL, code, user)
        await work.users.set_profile(replace(user, email_verified=True), now=now)


async def verify_phone(services: Services, gate: Gate, user_id: str, code: str, *, address: str) -> None:
    """Take a phone number as the user's, who has the code that was sent there.

    Raises:
        Problem: 422, not the code, or too many attempts at it; ``rate_limited``.
        PhoneTaken: someone else was first.
    """
    gate.limits.admit(gate.codes, address)
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        user = await work.users.get(user_id, lock=True)
        right = user is not None and await work.codes.redeem_short(
            user_id, Purpose.PHONE, code, now=now, attempts_max=services.settings.phone_code_attempts_max
        )
        if user is not None and right:
            await work.users.set_profile(replace(user, phone_verified=True), now=now)
    if not right:  # Raised out here, so that the attempt is kept.
        raise _bad_code()


async def resend(services: Services, gate: Gate, user_id: str, channel: schemas.Channel, *, address: str) -> None:
    """Send another code; the ones before are void. Where there is nothing to verify, nothing is sent.

    Raises:
        Problem: ``rate_limited``.
    """
    gate.limits.admit(gate.codes, address)
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
            wait_s = await send_code(work, services, gate, user, purpose, address=address)
            if wait_s:
                raise Problem("rate_limited", "Too many codes were sent to this address.", retry_after_s=wait_s)


async def forgot(services: Services, gate: Gate, asked: schemas.Forgotten, *, address: str) -> None:
    """Send a code to set a new password, to the verified e-mail address of that account if there is one.

    What is answered, and when, tells nothing of whether there is.

    Raises:
        Problem: ``rate_limited``, by the address asked from alone.
    """
    gate.limits.admit(gate.codes, address)
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
                await send_code(work, services, gate, user, Purpose.PASSWORD, address=address)
    await asyncio.sleep(answer_at - loop.time())


async def reset_password(services: Services, gate: Gate, reset: schemas.Reset, *, address: str) -> None:
    """Set a new password by a code; every session of the user ends.

    Raises:
        Problem: 422, no such code or not a good password; ``rate_limited``.
    """
    gate.limits.admit(gate.codes, address)
    async with services.unit_of_work() as work:
        user = await _holder(work, Purpose.PASSWORD, reset.code)
    password_hash = await hash_new_password(gate.passwords, reset.password, login=user.login)
    async with services.unit_of_work() as work:
        user = await _holder(work, Purpose.PASSWORD, reset.code, lock=True)
        await _redeem(work, Purpose.PASSWORD, reset.code, user)
        await work.users.set_password(user.id, password_hash)
        await end_sessions(work, user.id)
        await work.audit.record(
            user_id=user.id, role=user.role, action="reset_password", subject="user", subject_ids=[user.id]
        )
    gate.principals.forget(user.id)


async def send_code(
    work: UnitOfWork, services: Services, gate: Gate, user: User, purpose: Purpose, *, address: str
) -> float:
    """Send a code, unless as many as may be were sent there at the request of this ``address``, for whichever accounts.

    Nobody is flooded so, and nobody waits because of strangers. Returns how many seconds later one may be sent again;
    0: it is on its way.
    """
    short = purpose is Purpose.PHONE
    where = user.phone if short else mailbox(user.email)
    who = services.vault.index("codes_sent", f"{purpose} {where} {address}").hex()
    wait_s = gate.limits.take(gate.codes_sent, who)
    if wait_s:
        return wait_s
    settings = services.settings
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
    return 0


async def change_code(
    work: UnitOfWork, services: Services, gate: Gate, user: User, purpose: Purpose, *, address: str
) -> None:
    """Void the codes for the address before, and send one to the new one if it is not too soon for that."""
    if await _code_wait_s(work, services.settings, user.id, purpose) or await send_code(
        work, services, gate, user, purpose, address=address
    ):
        await work.codes.void(user.id, purpose, now=datetime.now(UTC))


async def _code_wait_s(work: UnitOfWork, settings: Settings, user_id: str, purpose: Purpose) -> float:
    """How long the user has to wait for the next code; 0: not at all."""
    now = datetime.now(UTC)
    issued = await work.codes.issued(user_id, purpose, since=now - DAY)
    if issued.last_at is None:
        return 0
    age_s = (now - issued.last_at).total_seconds()
    if 0 < settings.codes_a_day_max <= issued.count:
        return DAY.total_seconds() - age_s
    return max(0.0, settings.code_interval_s - age_s)


async def _holder(work: UnitOfWork, purpose: Purpose, code: str, *, lock: bool = False) -> User:
    """The user whose good code this is; ``lock`` keeps others from changing the user, not the code."""
    user_id = await work.codes.holder(purpose, code, now=datetime.now(UTC))
    user = None if user_id is None else await work.users.get(user_id, lock=lock)
    if user is None or (purpose is Purpose.PASSWORD and user.disabled_at is not None):
        raise _bad_code()
    return user


async def _redeem(work: UnitOfWork, purpose: Purpose, code: str, user: User) -> None:
    """Use up the code of a user who is locked; what was good before may have been voided meanwhile."""
    if await work.codes.redeem(purpose, code, now=datetime.now(UTC)) != user.id:
        raise _bad_code()


def _bad_code() -> Problem:
    return invalid("/code", "The code is wrong, was used or has expired.")
