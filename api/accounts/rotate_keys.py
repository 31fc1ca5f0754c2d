"""``python -m api.accounts.rotate_keys``: a new key that signs access tokens from now on.

Needs ``ZAPIS_DATABASE_URL`` and the master key, and nothing else to run: processes that serve read the keys anew within
a minute. One line on standard output names the key, one on standard error says why there is none; the exit code is 0
or 1.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

from api.accounts import tokens
from cluster.settings import Settings, SettingsError, read_settings, variable, wrong_master_key
from persistence.database import open_database
from persistence.sealed import Unreadable, Vault
from persistence.unit_of_work import DatabaseUnavailable, UnitOfWork


def main() -> int:
    """Make the key; returns the exit code."""
    try:
        kid = asyncio.run(rotate(read_settings()))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
    except Unreadable:
        sys.stderr.write(f"{wrong_master_key()}\n")
    except DatabaseUnavailable:
        sys.stderr.write(f"{variable('database_url')}: the database is unavailable\n")
    else:
        sys.stdout.write(f"access tokens are signed by the new key {kid}\n")
        return 0
    return 1


async def rotate(settings: Settings) -> str:
    """Make a new key and retire the others; gives its ``kid``.

    Raises:
        SettingsError: a setting is missing. Unreadable: not the master key of this database.
        DatabaseUnavailable
    """
    settings.require("database_url")
    vault = Vault(settings.master_key_bytes())
    database = open_database(settings.database_url or "", pool_max=1)
    try:
        async with UnitOfWork(database, vault) as work:
            return await tokens.rotate_keys(work, datetime.now(UTC))
    finally:
        await database.dispose()


if __name__ == "__main__":
    sys.exit(main())
