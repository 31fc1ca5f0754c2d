"""``python -m api.accounts.create_admin LOGIN``: a new administrator, with the password in ``ZAPIS_ADMIN_PASSWORD``.

Needs ``ZAPIS_DATABASE_URL`` and the master key, and nothing else to run. One line on standard output says who was made,
one on standard error why nobody was; the exit code is 0 or 1.
"""

from __future__ import annotations

import asyncio
import sys

from api.accounts.first_admin import create_admin
from api.accounts.passwords import Passwords, hash_new_password
from api.errors import Problem
from api.fields import checked_login
from cluster.settings import Settings, SettingsError, read_settings, variable, wrong_master_key
from persistence.database import open_database
from persistence.repositories.users import LoginTaken
from persistence.sealed import Unreadable, Vault
from persistence.unit_of_work import DatabaseUnavailable, UnitOfWork


def main(arguments: list[str]) -> int:
    """Make the administrator; returns the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m api.accounts.create_admin LOGIN\n")
        return 2
    try:
        login = asyncio.run(make(read_settings(), arguments[0]))
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
    except Problem as problem:
        reasons = " ".join(detail for _, detail in problem.errors) or problem.detail
        sys.stderr.write(f"{variable('admin_password')}: {reasons}\n")
    except LoginTaken:
        sys.stderr.write(f"the login {arguments[0]} is taken\n")
    except Unreadable:
        sys.stderr.write(f"{wrong_master_key()}\n")
    except DatabaseUnavailable:
        sys.stderr.write(f"{variable('database_url')}: the database is unavailable\n")
    else:
        sys.stdout.write(f"made the administrator {login}\n")
        return 0
    return 1


async def make(settings: Settings, wanted: str) -> str:
    """Make an administrator with that login; gives the login in its normal form.

    Raises:
        SettingsError: a setting is missing. ValueError: not a login. Problem: not a good password.
        Unreadable: not the master key of this database. LoginTaken, DatabaseUnavailable
    """
    settings.require("database_url", "admin_password")
    login = checked_login(wanted)
    passwords = Passwords(threads=1, waiting_max=1)
    database = open_database(settings.database_url or "", pool_max=1)
    try:
        password_hash = await hash_new_password(passwords, settings.admin_password or "", login=login)
        async with UnitOfWork(database, Vault(settings.master_key_bytes())) as work:
            await work.signing_keys.all()  # Under another master key they cannot be read, nor could the new account be.
            await create_admin(work, login, password_hash)
    finally:
        passwords.close()
        await database.dispose()
    return login


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
