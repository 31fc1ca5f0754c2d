"""The first administrator, who makes the others: from the settings at a start, or by hand."""

from __future__ import annotations

from typing import Final

import structlog

from actors.messages import Role
from api.accounts.passwords import Passwords, flaws
from api.accounts.service import create_user
from api.fields import checked_login
from cluster.bootstrap import Services
from cluster.settings import SettingsError, variable
from persistence.repositories.users import LoginTaken, User
from persistence.unit_of_work import UnitOfWork

NAME: Final = "Administrator"

log = structlog.get_logger()


async def ensure_first_admin(services: Services, passwords: Passwords) -> None:
    """Have an administrator, where the settings give a password for one and there is none yet.

    Raises:
        SettingsError: the login is not one, or belongs to someone who is no administrator.
    """
    settings = services.settings
    if not settings.admin_password:
        return
    async with services.unit_of_work() as work:
        if await work.users.admin_exists():
            return
    try:
        login = checked_login(settings.admin_login)
    except ValueError as error:
        raise SettingsError(f"{variable('admin_login')}: {error}") from None
    if flaws(settings.admin_password, login=login):
        # The operator decides: refusing would leave the clinic without anyone who can enter it.
        log.warning("weak_admin_password", setting=variable("admin_password"))
    password_hash = await passwords.hash(settings.admin_password)
    try:
        async with services.unit_of_work() as work:
            await create_admin(work, login, password_hash)
    except LoginTaken:
        async with services.unit_of_work() as work:
            if not await work.users.admin_exists():  # Else another process was quicker.
                raise SettingsError(f"{variable('admin_login')}: this login belongs to someone else") from None


async def create_admin(work: UnitOfWork, login: str, password_hash: str) -> User:
    """A new administrator, noted in the audit trail as made by itself.

    Raises:
        LoginTaken
    """
    user = await create_user(work, login=login, password_hash=password_hash, name=NAME, role=Role.ADMIN, verified=True)
    await work.audit.record(
        user_id=user.id, role=user.role, action="create_admin", subject="user", subject_ids=[user.id]
    )
    return user
