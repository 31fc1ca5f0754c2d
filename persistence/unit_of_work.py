"""One request, one transaction: what is not a calendar is read and written through a unit of work.

``async with UnitOfWork(database, vault) as work`` begins; leaving it cleanly commits, leaving it with an exception
rolls back. Nobody else commits. The repositories hang on it and share its connection.

A database that is away, full, too slow or gone in the middle of a COMMIT surfaces as one failure,
``DatabaseUnavailable``: the outcome is unknown, and trying again is up to the caller.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from types import TracebackType
from typing import Self

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from persistence.repositories.audit import Audit
from persistence.repositories.codes import Codes
from persistence.repositories.keys import SigningKeys
from persistence.repositories.patients import Patients
from persistence.repositories.tokens import RefreshTokens
from persistence.repositories.users import Users
from persistence.sealed import Vault


class DatabaseUnavailable(Exception):
    """The database did not do it, or did not say so: it is away, full, or took too long."""


class UnitOfWork:
    """A transaction with its repositories; use it once.

    Raises:
        DatabaseUnavailable: from entering, from leaving, and in place of such a failure inside.
    """

    def __init__(self, database: AsyncEngine, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._connection: AsyncConnection | None = None

    async def __aenter__(self) -> Self:
        try:
            connection = await self._database.connect().start()
            try:
                await connection.begin()
            except BaseException:
                await connection.close()
                raise
        except Exception as error:
            _raise_if_unavailable(error)
            raise
        self._connection = connection
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection = self.connection
        self._connection = None
        try:
            if error is None:
                await connection.commit()
            else:
                await connection.rollback()
        except Exception as failure:
            if isinstance(error, asyncio.CancelledError) and _is_unavailable(failure):
                return  # The cancellation goes on; with its connection the transaction has ended, too.
            _raise_if_unavailable(failure)
            raise
        finally:
            await connection.close()
        if error is not None:
            _raise_if_unavailable(error)

    @property
    def connection(self) -> AsyncConnection:
        """The connection of this transaction, for what no repository does."""
        assert self._connection is not None, "the unit of work is not open"
        return self._connection

    @property
    def vault(self) -> Vault:
        """What seals and opens personal data."""
        return self._vault

    @cached_property
    def users(self) -> Users:
        """Accounts."""
        return Users(self.connection, self._vault)

    @cached_property
    def patients(self) -> Patients:
        """Patients and who may book for them."""
        return Patients(self.connection, self._vault)

    @cached_property
    def refresh_tokens(self) -> RefreshTokens:
        """Sessions."""
        return RefreshTokens(self.connection)

    @cached_property
    def codes(self) -> Codes:
        """Codes sent to people to verify an address or to set a new password."""
        return Codes(self.connection, self._vault)

    @cached_property
    def signing_keys(self) -> SigningKeys:
        """Keys that sign access tokens."""
        return SigningKeys(self.connection, self._vault)

    @cached_property
    def audit(self) -> Audit:
        """Who did what to what."""
        return Audit(self.connection)


def _raise_if_unavailable(error: BaseException) -> None:
    if _is_unavailable(error):
        raise DatabaseUnavailable("the database is unavailable") from error


def _is_unavailable(error: BaseException) -> bool:
    return isinstance(error, OperationalError | InterfaceError | PoolTimeout | ConnectionError) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )
