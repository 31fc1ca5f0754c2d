"""Signing in, going on and logging out: what a session is made of, and how it ends.

A session is a family of refresh tokens, each of which works once. Whatever makes or ends one locks its user first, so a
token that is being renewed cannot outlive the end of its session.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from api.errors import Problem
from api.gate import Gate
from cluster.bootstrap import Services
from cluster.settings import Settings
from persistence.identifiers import new_id
from persistence.normal_forms import normal_login
from persistence.repositories.notifications import Notifications
from persistence.repositories.tokens import Session
from persistence.repositories.users import User
from persistence.unit_of_work import UnitOfWork

DEVICES_MAX: Final = 50
DEVICE_LENGTH_MAX: Final = 1000
WRONG: Final = "The login or the password is wrong."


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What someone gets who has signed in."""

    access_token: str
    expires_in: int
    refresh_token: str


async def sign_in(services: Services, gate: Gate, *, username: str, password: str, address: str, device: str) -> Tokens:
    """Tokens for who knows the password. Takes as long for a login that nobody has.

    ``device`` is what the client says of itself: a user is told of one that is new.

    Raises:
        Problem: ``unauthenticated``, ``rate_limited``.
    """
    gate.limits.admit(gate.logins, address)
    login = normal_login(username)
    async with services.unit_of_work() as work:
        user = await work.users.by_login(login)
    await check_password(services, gate, login, user.password_hash if user else None, password)
    assert user is not None, "nobody's password is never right"
    new_hash = await gate.passwords.hash(password) if gate.passwords.outdated(user.password_hash) else None
    session = Session(user_id=user.id, family_id=new_id())
    async with services.unit_of_work() as work:
        now_known = await work.users.get(user.id, lock=True)
        if now_known is None or now_known.password_hash != user.password_hash:
            raise Problem("unauthenticated", WRONG)  # It was changed meanwhile, and every session ended.
        if now_known.disabled_at is not None:
            raise Problem("unauthenticated", "This account is disabled.")
        if new_hash is not None:
            await work.users.set_password(user.id, new_hash)
        now = datetime.now(UTC)
        await work.refresh_tokens.tidy(user.id, now=now, sessions_max=services.settings.sessions_max)
        if await work.users.note_device(user.id, device[:DEVICE_LENGTH_MAX], now=now, most=DEVICES_MAX):
            await Notifications(work.connection).cause(
                "new_device", user.id, {"at": now.isoformat()}, key=work.users.data_key(now_known), now=now
            )
        refresh_token = await _add_refresh_token(work, services.settings, session)
    return await _tokens(gate, now_known, session, refresh_token)


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
        session = await work.refresh_tokens.find(token_hash)
        if session is not None:
            # Whatever ends sessions locks the user first, too: no new token slips past it.
            user = await work.users.get(session.user_id, lock=True)
            if await work.refresh_tokens.use(token_hash, now=now) is None:
                await work.refresh_tokens.revoke_family(session.family_id, now=now)
                session = None
            elif user is not None and user.disabled_at is None:
                new_token = await _add_refresh_token(work, services.settings, session)
    if session is None or user is None or user.disabled_at is not None:
        raise Problem("unauthenticated", "The refresh token is not good, or not any more.")
    return await _tokens(gate, user, session, new_token)


async def log_out(services: Services, refresh_token: str) -> None:
    """End the session that the token belongs to, if there is one.

    Its last access token stays good until it expires: to end it is to end those of all the user's sessions.
    """
    async with services.unit_of_work() as work:
        session = await work.refresh_tokens.find(_token_hash(refresh_token))
        if session is not None:
            await work.users.get(session.user_id, lock=True)
            await work.refresh_tokens.revoke_family(session.family_id, now=datetime.now(UTC))


async def end_sessions(work: UnitOfWork, user_id: str, *, but_family: str | None = None) -> None:
    """Make every token of a user useless; ``gate.principals.forget`` afterwards makes it so in this process at once.

    ``but_family`` is a session that goes on.
    """
    await work.users.end_sessions(user_id, but=but_family)
    await work.refresh_tokens.revoke_all(user_id, now=datetime.now(UTC), but_family=but_family)


async def check_password(services: Services, gate: Gate, login: str, password_hash: str | None, password: str) -> None:
    """Let the right password pass; count a wrong one, whoever has the login."""
    who = services.vault.index("login", login).hex()
    async with gate.passwords.turn() as turn:
        # Looked at when it is this one's turn: of many guesses at once only so many are tried.
        wait_s = gate.limits.wait_s(gate.login_failures, who)
        if wait_s:
            raise Problem("rate_limited", "Too many wrong passwords for this login.", retry_after_s=wait_s)
        if not await turn.verify(password_hash, password):
            gate.limits.add(gate.login_failures, who)
            raise Problem("unauthenticated", WRONG)


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
