"""Accounts: who may sign in, as what, and how they are reached."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Select, delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Row
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from actors.messages import Role
from persistence.sealed import DataKey, Erased, Vault, place, user_owner
from persistence.tables import app_user, known_device


class LoginTaken(Exception):
    """Another account has this login."""


class EmailTaken(Exception):
    """Another account has verified this e-mail address."""


class PhoneTaken(Exception):
    """Another account has verified this phone number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An account with what is known of its holder, opened."""

    id: str
    role: Role
    login: str = field(repr=False)
    name: str = field(repr=False)
    email: str = field(repr=False)
    phone: str = field(repr=False)
    email_verified: bool
    phone_verified: bool
    locale: str
    timezone: str
    patient_id: str | None
    doctor_id: str | None
    registered_at: datetime
    disabled_at: datetime | None
    session_generation: int
    password_hash: str = field(repr=False)
    wrapped_key: bytes = field(repr=False)


class Users:
    """Reads and writes accounts; what is personal is sealed on the way in and opened on the way out."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        self._connection = connection
        self._vault = vault

    async def add(
        self,
        *,
        user_id: str,
        role: Role,
        login: str,
        password_hash: str,
        name: str,
        email: str,
        phone: str,
        locale: str,
        timezone: str,
        patient_id: str | None,
        doctor_id: str | None,
        now: datetime,
        verified: bool,
    ) -> User:
        """Keep a new account; ``login``, ``email`` and ``phone`` in their normal forms. An empty phone is none.

        Raises:
            LoginTaken: someone else has the login.
            EmailTaken, PhoneTaken: ``verified``, and someone else has verified the address.
        """
        wrapped_key = self._vault.new_data_key(user_owner(user_id))
        user = User(
            id=user_id,
            role=role,
            login=login,
            name=name,
            email=email,
            phone=phone,
            email_verified=verified,
            phone_verified=verified and bool(phone),
            locale=locale,
            timezone=timezone,
            patient_id=patient_id,
            doctor_id=doctor_id,
            registered_at=now,
            disabled_at=None,
            session_generation=0,
            password_hash=password_hash,
            wrapped_key=wrapped_key,
        )
        statement = (
            insert(app_user)
            .values(
                id=user_id,
                login_index=self._login_index(login),
                password_hash=password_hash,
                role=role.value,
                data_key=wrapped_key,
                locale=locale,
                timezone=timezone,
                patient_id=patient_id,
                doctor_id=doctor_id,
                registered_at=now,
                email_verified_at=now if user.email_verified else None,
                phone_verified_at=now if user.phone_verified else None,
                **self._personal(user),
            )
            .on_conflict_do_nothing(index_elements=["login_index"])
            .returning(app_user.c.id)
        )
        if await self._guarding_addresses(statement) is None:
            raise LoginTaken
        return user

    async def get(self, user_id: str, *, lock: bool = False) -> User | None:
        """The account of that id, unless it was erased; ``lock`` keeps others from changing it."""
        statement = select(app_user).where(app_user.c.id == user_id)
        return await self._one(statement.with_for_update() if lock else statement)

    async def get_many(self, user_ids: Collection[str]) -> dict[str, User]:
        """The accounts of these ids, but for those that were erased."""
        rows = await self._connection.execute(
            select(app_user).where(app_user.c.id.in_(user_ids), app_user.c.erased_at.is_(None))
        )
        return {row.id: self._opened(row) for row in rows}

    async def by_login(self, login: str) -> User | None:
        """The account with that login, in its normal form."""
        return await self._one(select(app_user).where(app_user.c.login_index == self._login_index(login)))

    async def by_verified_email(self, email: str) -> User | None:
        """The one account that has verified this address."""
        return await self._one(
            select(app_user).where(
                app_user.c.email_index == self._email_index(email), app_user.c.email_verified_at.is_not(None)
            )
        )

    async def login_taken(self, login: str) -> bool:
        """Whether an account has that login."""
        found = await self._connection.scalar(
            select(app_user.c.id).where(app_user.c.login_index == self._login_index(login))
        )
        return found is not None

    async def page(self, *, after: tuple[datetime, str] | None, limit: int) -> list[User]:
        """Accounts in the order in which they were made."""
        statement = select(app_user).where(app_user.c.erased_at.is_(None))
        if after is not None:
            statement = statement.where(tuple_(app_user.c.registered_at, app_user.c.id) > after)
        rows = await self._connection.execute(statement.order_by(app_user.c.registered_at, app_user.c.id).limit(limit))
        return [self._opened(row) for row in rows]

    async def admin_exists(self) -> bool:
        """Whether there is an administrator who may sign in."""
        found = await self._connection.scalar(
            select(app_user.c.id)
            .where(
                app_user.c.role == Role.ADMIN.value, app_user.c.disabled_at.is_(None), app_user.c.erased_at.is_(None)
            )
            .limit(1)
        )
        return found is not None

    async def is_last_admin(self, user_id: str) -> bool:
        """Whether nobody else may administer. Keeps every administrator from being changed by others meanwhile."""
        admins = await self._connection.scalars(
            select(app_user.c.id)
            .where(
                app_user.c.role == Role.ADMIN.value, app_user.c.disabled_at.is_(None), app_user.c.erased_at.is_(None)
            )
            .order_by(app_user.c.id)
            .with_for_update()
        )
        return set(admins) <= {user_id}

    async def set_profile(self, user: User, *, now: datetime) -> None:
        """Write name, addresses, locale and time zone of ``user``; an address that is no longer verified is unverified.

        Raises:
            EmailTaken, PhoneTaken: an address is still verified here and was verified by someone else.
        """
        verified_at = {
            "email_verified_at": func.coalesce(app_user.c.email_verified_at, now) if user.email_verified else None,
            "phone_verified_at": func.coalesce(app_user.c.phone_verified_at, now) if user.phone_verified else None,
        }
        await self._guarding_addresses(
            update(app_user)
            .where(app_user.c.id == user.id)
            .values(locale=user.locale, timezone=user.timezone, **verified_at, **self._personal(user))
            .returning(app_user.c.id)
        )

    async def set_password(self, user_id: str, password_hash: str) -> None:
        """Write a new password hash."""
        await self._connection.execute(
            update(app_user).where(app_user.c.id == user_id).values(password_hash=password_hash)
        )

    async def set_disabled(self, user_id: str, at: datetime | None) -> None:
        """Keep the user out from ``at`` on, or let them in again."""
        await self._connection.execute(update(app_user).where(app_user.c.id == user_id).values(disabled_at=at))

    async def set_role(self, user_id: str, role: Role, *, doctor_id: str | None) -> None:
        """Make the user something else to the clinic; a doctor is named by its directory entry."""
        await self._connection.execute(
            update(app_user).where(app_user.c.id == user_id).values(role=role.value, doctor_id=doctor_id)
        )

    async def note_device(self, user_id: str, description: str, *, now: datetime, most: int) -> bool:
        """Remember from what a user has signed in; whether it is another one than those from which they have before.

        Nobody is told of their first one. Of more than ``most`` those not seen for longest are forgotten.
        """
        index = self._vault.index("device", f"{user_id}:{description}")
        mine = known_device.c.user_id == user_id
        known = await self._connection.scalar(
            update(known_device).where(mine, known_device.c.device_index == index).values(seen_at=now).returning(mine)
        )
        if known is not None:
            return False
        others = await self._connection.scalar(select(func.count()).where(mine)) or 0
        await self._connection.execute(insert(known_device).values(user_id=user_id, device_index=index, seen_at=now))
        if others >= most:
            oldest = select(known_device.c.device_index).where(mine).order_by(known_device.c.seen_at).limit(1)
            await self._connection.execute(delete(known_device).where(mine, known_device.c.device_index.in_(oldest)))
        return others > 0

    async def forget_devices(self, user_id: str) -> None:
        """Those of a user who is erased."""
        await self._connection.execute(delete(known_device).where(known_device.c.user_id == user_id))

    async def end_sessions(self, user_id: str, *, but: str | None = None) -> None:
        """Make every access token that the user has useless, those of the session ``but`` excepted."""
        await self._connection.execute(
            update(app_user)
            .where(app_user.c.id == user_id)
            .values(session_generation=app_user.c.session_generation + 1, kept_session_id=but)
        )

    async def erase(self, user_id: str, *, now: datetime) -> None:
        """Destroy the user's data key and everything that could tell who it was; the login is free again."""
        await self._connection.execute(
            update(app_user)
            .where(app_user.c.id == user_id)
            .values(
                login_index=os.urandom(32),
                password_hash="",
                data_key=None,
                sealed=None,
                email_index=None,
                phone_index=None,
                email_verified_at=None,
                phone_verified_at=None,
                locale="en",
                timezone="UTC",
                session_generation=app_user.c.session_generation + 1,
                disabled_at=now,
                erased_at=now,
            )
        )

    def data_key(self, user: User) -> DataKey:
        """The user's own data key."""
        return self._vault.data_key(user_owner(user.id), user.wrapped_key)

    async def _guarding_addresses(self, statement: object) -> str | None:
        """The id that a writing statement returns; the unique indexes of verified addresses have their own errors."""
        try:
            async with self._connection.begin_nested():
                changed: str | None = await self._connection.scalar(statement)  # type: ignore[call-overload]  # insert or update, both returning
        except IntegrityError as error:
            match getattr(getattr(error.orig, "diag", None), "constraint_name", None):
                case "uq_app_user_email_verified":
                    raise EmailTaken from None
                case "uq_app_user_phone_verified":
                    raise PhoneTaken from None
            raise
        return changed

    async def _one(self, statement: Select[tuple[object, ...]]) -> User | None:
        row = (await self._connection.execute(statement.where(app_user.c.erased_at.is_(None)))).first()
        return None if row is None else self._opened(row)

    def _opened(self, row: Row[tuple[object, ...]]) -> User:
        if row.data_key is None:
            raise Erased
        key = self._vault.data_key(user_owner(row.id), row.data_key)
        personal = key.unseal_json(row.sealed, place("app_user", row.id, "sealed"))
        return User(
            id=row.id,
            role=Role(row.role),
            login=personal["login"],
            name=personal["name"],
            email=personal["email"],
            phone=personal["phone"],
            email_verified=row.email_verified_at is not None,
            phone_verified=row.phone_verified_at is not None,
            locale=row.locale,
            timezone=row.timezone,
            patient_id=row.patient_id,
            doctor_id=row.doctor_id,
            registered_at=row.registered_at,
            disabled_at=row.disabled_at,
            session_generation=row.session_generation,
            password_hash=row.password_hash,
            wrapped_key=row.data_key,
        )

    def _personal(self, user: User) -> dict[str, bytes | None]:
        sealed = self.data_key(user).seal_json(
            {"login": user.login, "name": user.name, "email": user.email, "phone": user.phone},
            place("app_user", user.id, "sealed"),
        )
        return {
            "sealed": sealed,
            "email_index": self._email_index(user.email) if user.email else None,
            "phone_index": self._vault.index("phone", user.phone) if user.phone else None,
        }

    def _login_index(self, login: str) -> bytes:
        return self._vault.index("login", login)

    def _email_index(self, email: str) -> bytes:
        # Mail servers may tell upper from lower case before the @; no two people are told apart by it.
        return self._vault.index("email", email.casefold())
