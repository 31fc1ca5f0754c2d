"""What decides who gets in, and how often: one ``Gate`` for each API process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis

from api.accounts.passwords import Passwords
from api.accounts.tokens import AccessTokens
from api.limits import Limit, Limits
from api.principals import PrincipalCache
from cluster.settings import Settings
from persistence.lookups import Lookups
from persistence.unit_of_work import UnitOfWork

ATTEMPT_SHARE: Final = 10
MINUTE_S: Final = 60
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Tokens, principals, passwords and limits."""

    tokens: AccessTokens
    principals: PrincipalCache
    passwords: Passwords
    limits: Limits
    requests: Limit
    """Of one user or address."""
    logins: Limit
    """Of one address: attempts to sign in."""
    registrations: Limit
    """Of one address."""
    codes: Limit
    """Of one address: attempts to use a code, or to have one sent."""
    codes_sent: Limit
    """From one address to one mailbox or phone, for one purpose."""
    login_failures: Limit
    """Of one account: wrong passwords."""


async def open_gate(
    settings: Settings, *, unit_of_work: Callable[[], UnitOfWork], lookups: Lookups, redis: Redis | None
) -> Gate:
    """A gate over these settings; makes the signing keys where there are none.

    Raises:
        DatabaseUnavailable
    """
    tokens = AccessTokens(
        issuer=settings.token_issuer,
        audience=settings.token_audience,
        ttl_s=settings.access_token_ttl_s,
        unit_of_work=unit_of_work,
    )
    await tokens.open()
    limits = Limits(redis)
    limits.start()
    attempts = max(1, settings.rate_limit // ATTEMPT_SHARE) if settings.rate_limit else 0
    return Gate(
        tokens=tokens,
        principals=PrincipalCache(lookups.access),
        passwords=Passwords(threads=settings.password_hashers, waiting_max=settings.password_queue_max),
        limits=limits,
        requests=Limit(name="requests", count=settings.rate_limit, window_s=MINUTE_S),
        logins=Limit(name="logins", count=attempts, window_s=MINUTE_S),
        registrations=Limit(name="registrations", count=attempts, window_s=MINUTE_S),
        codes=Limit(name="codes", count=attempts, window_s=MINUTE_S),
        codes_sent=Limit(name="codes_sent", count=settings.codes_a_day_max, window_s=DAY_S),
        login_failures=Limit(
            name="login_failures", count=settings.login_failures_max, window_s=settings.login_failures_window_s
        ),
    )


async def close_gate(gate: Gate) -> None:
    """Let it go."""
    await gate.limits.stop()
    await gate.principals.close()
    gate.passwords.close()
