"""Access tokens: the one module that touches python-jose, which accepts by default much that must be refused.

A token is a JWT by RFC 9068: ``typ`` at+jwt, signed with ES256 by a key of ours that its ``kid`` names, for our issuer
and audience, with every claim we set. Everything else is refused before jose sees it: other algorithms (``none``, and
HS256 with our public key as its secret), other header fields (``crit``, ``jwk``, ``jku``, ``x5u`` … name keys or rules
of the sender's), encrypted tokens, encodings that are not canonical, and anything too long to be ours.

A token that was verified is remembered by its SHA-256 until it expires, so it is verified once in a process. Keys are
made at the first start, and by rotation, under a lock that all processes share; a retired key signs no more, verifies
until its last token has expired, and is removed then.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jose import jwk, jwt
from jose.exceptions import JOSEError

from persistence.identifiers import new_id
from persistence.repositories.keys import SigningKey
from persistence.unit_of_work import UnitOfWork

ALGORITHM: Final = "ES256"
TYPE: Final = "at+jwt"
TOKEN_LENGTH_MAX: Final = 2048
CLOCK_SKEW_S: Final = 5
VERIFIED_MAX: Final = 50_000
KEYS_RELOAD_S: Final = 60.0
UNKNOWN_KEY_RELOAD_S: Final = 2.0
REQUIRED: Final = ("aud", "iat", "exp", "nbf", "iss", "sub", "jti")
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{86}", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class InvalidToken(Exception):
    """Not a good token of ours; which of the reasons it was is nobody's business but the tests'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a good token says."""

    user_id: str
    session_id: str
    session_generation: int
    """Tokens of an older generation than the user's are useless."""
    expires_at: int


class AccessTokens:
    """Signs and verifies; ``open`` first."""

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        ttl_s: int,
        unit_of_work: Callable[[], UnitOfWork],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ttl_s = ttl_s
        self._issuer = issuer
        self._audience = audience
        self._unit_of_work = unit_of_work
        self._clock = clock
        self._verifying: dict[str, Any] = {}
        self._signing: tuple[str, Any] | None = None
        self._published: list[Mapping[str, str]] = []
        self._loaded_at = float("-inf")
        self._loading: asyncio.Lock = asyncio.Lock()
        self._verified: OrderedDict[bytes, Claims] = OrderedDict()

    async def open(self) -> None:
        """Load the keys; make the first one where there is none.

        Raises:
            DatabaseUnavailable
        """
        async with self._unit_of_work() as work:
            keys = await work.signing_keys.all()
            if not any(key.retired_at is None for key in keys):
                await work.signing_keys.lock()
                keys = await work.signing_keys.all()
                if not any(key.retired_at is None for key in keys):
                    await _add_key(work, self._now())
                    keys = await work.signing_keys.all()
        self._take(keys)

    async def rotate(self) -> None:
        """Sign with a new key from now on; other processes follow within ``KEYS_RELOAD_S``."""
        async with self._unit_of_work() as work:
            await rotate_keys(work, self._now())
            keys = await work.signing_keys.all()
        self._take(keys)

    async def sign(self, *, user_id: str, session_id: str, session_generation: int) -> str:
        """A new token for a user, good for ``ttl_s``."""
        if self._clock() - self._loaded_at > KEYS_RELOAD_S:
            await self._reload(older_than_s=KEYS_RELOAD_S)
        assert self._signing is not None, "the keys are not loaded"
        kid, key = self._signing
        now = int(self._clock())
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": user_id,
            "iat": now,
            "nbf": now,
            "exp": now + self.ttl_s,
            "jti": new_id(),
            "sid": session_id,
            "gen": session_generation,
        }
        token: str = jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": kid, "typ": TYPE})
        return token

    async def verify(self, token: str) -> Claims:
        """What a good token says.

        Raises:
            InvalidToken: it is not a good one.
            DatabaseUnavailable: it names a key that is not known here, and the keys cannot be read.
        """
        known = self.remembered(token)
        if known is not None:
            return known
        kid = _checked_header(token)
        if kid not in self._verifying:
            await self._reload(older_than_s=UNKNOWN_KEY_RELOAD_S)
        key = self._verifying.get(kid)
        if key is None:
            raise InvalidToken("no such key")
        claims = self._checked_claims(token, key)
        self._verified[_digest(token)] = claims
        if len(self._verified) > VERIFIED_MAX:
            self._verified.popitem(last=False)
        return claims

    def remembered(self, token: str) -> Claims | None:
        """What a token says that was verified here before and is still good; costs no cryptography but a hash."""
        if len(token) > TOKEN_LENGTH_MAX or not token.isascii():
            return None
        digest = _digest(token)
        claims = self._verified.get(digest)
        if claims is not None and claims.expires_at <= self._clock():
            del self._verified[digest]
            return None
        return claims

    def jwks(self) -> dict[str, Any]:
        """The public keys as a JWK set (RFC 7517)."""
        return {"keys": self._published}

    def _checked_claims(self, token: str, key: Any) -> Claims:
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=self._issuer,
                options={"leeway": CLOCK_SKEW_S} | {f"require_{name}": True for name in REQUIRED},
            )
        except (JOSEError, ValueError, TypeError, OverflowError) as error:
            raise InvalidToken("jose refuses it") from error
        now = self._clock()
        issued_at, begins_at, expires_at = claims["iat"], claims["nbf"], claims["exp"]
        generation = claims.get("gen")
        if not all(type(number) is int for number in (issued_at, begins_at, expires_at, generation)):
            raise InvalidToken("a claim is not a whole number")
        if not now < expires_at <= now + self.ttl_s + CLOCK_SKEW_S:
            raise InvalidToken("expired, or good for longer than ours are")
        if issued_at > now + CLOCK_SKEW_S or begins_at > now + CLOCK_SKEW_S:
            raise InvalidToken("not yet good")
        if claims["aud"] != self._audience or claims["iss"] != self._issuer or not isinstance(claims["jti"], str):
            raise InvalidToken("audience, issuer or jti is of another form")
        user_id, session_id = claims["sub"], claims.get("sid")
        if not (_is_id(user_id) and _is_id(session_id)):
            raise InvalidToken("sub or sid is not an id")
        return Claims(user_id=user_id, session_id=session_id, session_generation=generation, expires_at=expires_at)

    async def _reload(self, *, older_than_s: float) -> None:
        async with self._loading:
            if self._clock() - self._loaded_at < older_than_s:
                return
            self._loaded_at = self._clock()
            async with self._unit_of_work() as work:
                keys = await work.signing_keys.all()
                expired = self._now() - self._retired_ttl
                if any(key.retired_at is not None and key.retired_at < expired for key in keys):
                    await work.signing_keys.remove(retired_before=expired)
        self._take(keys)

    def _take(self, keys: list[SigningKey]) -> None:
        good = [key for key in keys if key.retired_at is None or key.retired_at + self._retired_ttl > self._now()]
        self._verifying = {key.kid: jwk.construct(key.public_pem, ALGORITHM) for key in good}
        self._published = [_as_jwk(key.kid, self._verifying[key.kid]) for key in good]
        newest = next(key for key in good if key.retired_at is None)
        self._signing = (newest.kid, jwk.construct(newest.private_pem, ALGORITHM))
        self._loaded_at = self._clock()

    @property
    def _retired_ttl(self) -> timedelta:
        # Another process may sign with a retired key until it reads the keys again.
        return timedelta(seconds=self.ttl_s + KEYS_RELOAD_S + CLOCK_SKEW_S)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


async def rotate_keys(work: UnitOfWork, now: datetime) -> str:
    """Make a key that signs from now on, and retire the others; gives its ``kid``.

    Who has a retired key verifies with it until its last token has expired, and removes it then.

    Raises:
        Unreadable: the keys that there are were sealed under another master key; then nothing is to be committed.
    """
    await work.signing_keys.lock()
    await work.signing_keys.all()
    kid = await _add_key(work, now)
    await work.signing_keys.retire(but=kid, at=now)
    return kid


async def _add_key(work: UnitOfWork, now: datetime) -> str:
    private = ec.generate_private_key(ec.SECP256R1())
    kid = new_id()
    await work.signing_keys.add(
        kid=kid,
        public_pem=private.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode(),
        private_pem=private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        created_at=now,
    )
    return kid


def _checked_header(token: str) -> str:
    """The ``kid`` of a token whose form and header are exactly as ours."""
    if len(token) > TOKEN_LENGTH_MAX or _COMPACT.fullmatch(token) is None:
        raise InvalidToken("not three parts of base64url with a signature of 64 bytes")
    try:
        decoded = [_decoded(part) for part in token.split(".")]
        header = orjson.loads(decoded[0])
    except (binascii.Error, ValueError) as error:
        raise InvalidToken("not canonical base64url or not JSON") from error
    if not isinstance(header, dict) or header.keys() != {"alg", "kid", "typ"}:
        raise InvalidToken("the header has other fields than ours")
    if header["alg"] != ALGORITHM or header["typ"] != TYPE or not isinstance(header["kid"], str):
        raise InvalidToken("another algorithm or type")
    return header["kid"]


def _decoded(part: str) -> bytes:
    decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() != part:
        raise ValueError("not canonical")
    return decoded


def _as_jwk(kid: str, key: Any) -> Mapping[str, str]:
    public = key.to_dict()
    return {name: public[name] for name in ("kty", "crv", "x", "y")} | {"kid": kid, "use": "sig", "alg": ALGORITHM}


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("ascii")).digest()
