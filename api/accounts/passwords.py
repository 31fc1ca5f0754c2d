"""Passwords: which ones are good enough, and their hashes, made off the event loop by a few threads.

Argon2id with the parameters that OWASP gives for it: 19 MiB, 2 passes, 1 lane. A hash takes some 20 ms of a core, so
what waits for a thread is bounded and past the bound refused.
"""

from __future__ import annotations

import asyncio
import os
import unicodedata
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib.resources import files
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from api.errors import Problem

LENGTH_MIN: Final = 10
LENGTH_MAX: Final = 128
DISTINCT_MIN: Final = 4
BARE_LENGTH_MIN: Final = 3
_SUBSTITUTIONS: Final = str.maketrans("0134578@$!|+", "oieastbasiit")
_DECORATION: Final = "0123456789!@#$%^&*()-_=+.,?/~'\"+<>:; "


class Passwords:
    """Hashes and checks with ``threads`` threads; at most ``waiting_max`` callers wait for one."""

    def __init__(self, *, threads: int, waiting_max: int) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self._free = asyncio.Semaphore(threads)
        self._waiting = 0
        self._waiting_max = waiting_max
        self._decoy = self._hasher.hash(os.urandom(32))

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """A thread of one's own.

        Raises:
            Problem: ``unavailable``, too many wait for one.
        """
        if self._waiting >= self._waiting_max:
            raise Problem("unavailable", "Too many people sign in right now: try again.", retry_after_s=1)
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield Turn(self._hasher, self._executor, self._decoy)
        finally:
            self._free.release()

    async def hash(self, password: str) -> str:
        """The hash to keep of a password.

        Raises:
            Problem: ``unavailable``, too many wait for a thread.
        """
        async with self.turn() as turn:
            return await turn.hash(password)

    def outdated(self, password_hash: str) -> bool:
        """Whether a hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(password_hash)


class Turn:
    """The right to use one thread."""

    def __init__(self, hasher: PasswordHasher, executor: ThreadPoolExecutor, decoy: str) -> None:
        self._hasher = hasher
        self._executor = executor
        self._decoy = decoy

    async def hash(self, password: str) -> str:
        """The hash to keep of a password."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._hasher.hash, _bytes(password))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the hash is of that password; takes as long where there is no hash."""
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, self._verify, password_hash or self._decoy, _bytes(password)
        )

    def _verify(self, password_hash: str, password: bytes) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False


async def hash_new_password(passwords: Passwords, password: str, *, login: str, pointer: str = "/password") -> str:
    """The hash of a password that is good enough.

    Raises:
        Problem: 422 at ``pointer``, with all that is wrong with it.
    """
    check_new_password(password, login=login, pointer=pointer)
    return await passwords.hash(password)


def check_new_password(password: str, *, login: str, pointer: str = "/password") -> None:
    """Let a password pass that is good enough.

    Raises:
        Problem: 422 at ``pointer``, with all that is wrong with it.
    """
    if found := flaws(password, login=login):
        raise Problem("validation_error", errors=[(pointer, flaw) for flaw in found])


def flaws(password: str, *, login: str) -> list[str]:
    """What keeps a password from being good enough; empty: nothing."""
    rules = [
        (LENGTH_MIN <= len(password) <= LENGTH_MAX, f"A password should have {LENGTH_MIN} to {LENGTH_MAX} characters."),
        (any(character.isupper() for character in password), "A password should have an upper-case letter."),
        (any(character.islower() for character in password), "A password should have a lower-case letter."),
        (any(character.isdigit() for character in password), "A password should have a digit."),
        (any(_special(character) for character in password), "A password should have a special character."),
    ]
    found = [complaint for kept, complaint in rules if not kept]
    plain = unicodedata.normalize("NFKC", password).casefold()
    if plain == login or plain.strip(_DECORATION) == login.strip(_DECORATION) != "":
        found.append("A password should not be the login.")
    elif _is_common(plain):
        found.append("This password is one of the first that would be tried.")
    return found


def _special(character: str) -> bool:
    return not character.isalnum() and character.isprintable()


def _is_common(plain: str) -> bool:
    """Whether it is well known: as it is, decorated at its ends, or behind the usual substitutions."""
    bare = plain.strip(_DECORATION)
    forms = {plain, bare, plain.translate(_SUBSTITUTIONS), plain.translate(_SUBSTITUTIONS).strip(_DECORATION)}
    # Decoration that the substitutions take for letters has to go first: "p@ssw0rd1!" → "p@ssw0rd" → "password".
    forms.add(bare.translate(_SUBSTITUTIONS))
    return len(set(bare)) < DISTINCT_MIN or not forms.isdisjoint(_common())


@lru_cache(maxsize=1)
def _common() -> frozenset[str]:
    text = (files("api.accounts") / "common_passwords.txt").read_text(encoding="utf-8")
    words = [word for line in text.splitlines() if not line.startswith("#") for word in line.split()]
    return frozenset(words) | {bare for word in words if len(bare := word.strip(_DECORATION)) >= BARE_LENGTH_MIN}


def _bytes(password: str) -> bytes:
    return unicodedata.normalize("NFKC", password).encode("utf-8", errors="surrogatepass")
