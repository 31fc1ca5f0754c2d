"""Web Push: what a browser shows though no page is open (RFC 8030), encrypted for it (RFC 8291), signed (RFC 8292).

Whom we are is a key pair derived from the master key: browsers subscribe to the public half, and whoever has only the
database can push to nobody. A subscription whose push service says that it is gone is forgotten.
"""

from __future__ import annotations

import asyncio
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterable
from typing import Final
from urllib.parse import urlsplit

import http_ece
import httpx
import orjson
import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from notifier.http import check, open_client, post
from notifier.senders import Failed, Message, NoAddress, Refused
from persistence.repositories.push_subscriptions import PushSubscription
from persistence.sealed import Vault

CURVE: Final = ec.SECP256R1()
CURVE_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_ADDRESS: Final = re.compile(r"[!$&-;=?-Z_a-z~%\[\]]+")
"""What may stand in one (RFC 3986, 2), but for the fragment."""
_LABEL: Final = re.compile(r"(?!..--)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""Of a host's name; services have none that is not ASCII."""
log = structlog.get_logger()

TOKEN_TTL_S: Final = 12 * 3600
TTL_MAX_S: Final = 7 * 86_400
PAYLOAD_BYTES_MAX: Final = 2800
"""Services take 4096 of what it becomes (RFC 8030, 7.2), and some less."""
GONE: Final = NoAddress("gone")
"""The browser has taken its subscription back."""
GONE_STATUS: Final = frozenset({404, 410})


class PushKeys:
    """Signs what is pushed (VAPID)."""

    def __init__(self, vault: Vault, *, subject: str) -> None:
        """``subject`` is how a push service reaches whoever runs this: ``mailto:…``."""
        number = int.from_bytes(vault.derive("web push"), "big") % (CURVE_ORDER - 1) + 1
        self._key = ec.derive_private_key(number, CURVE)
        self._subject = subject
        self._tokens: dict[str, tuple[float, str]] = {}
        self.public_key = base64url(self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
        """As browsers want it: an uncompressed point in base64url."""

    def authorization(self, endpoint: str) -> str:
        """The header for a push service."""
        parts = urlsplit(endpoint)
        audience = f"{parts.scheme}://{parts.netloc}"
        known = self._tokens.get(audience)
        now = time.time()
        if known is None or known[0] < now:
            # Used for half its life; there are few push services.
            self._tokens[audience] = known = (now + TOKEN_TTL_S / 2, self._token(audience, int(now) + TOKEN_TTL_S))
        return f"vapid t={known[1]}, k={self.public_key}"

    def _token(self, audience: str, expires_at: int) -> str:
        head = base64url(b'{"typ":"JWT","alg":"ES256"}')
        claims = base64url(orjson.dumps({"aud": audience, "exp": expires_at, "sub": self._subject}))
        signed = f"{head}.{claims}".encode()
        r, s = decode_dss_signature(self._key.sign(signed, ec.ECDSA(hashes.SHA256())))
        return f"{head}.{claims}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


class PushSender:
    """``Sender`` to every browser in which a user has subscribed; sent once one of them has it."""

    def __init__(self, keys: PushKeys, *, forget: Callable[[str], Awaitable[None]]) -> None:
        """``forget`` removes a subscription of that id."""
        self._keys = keys
        self._forget = forget
        self._client = open_client()

    async def send(self, message: Message) -> None:
        """See ``Sender``. Each browser has its service: one that does not answer says nothing of the others."""
        subscriptions = message.content.subscriptions
        answers = await asyncio.gather(*(self._push(message, each) for each in subscriptions), return_exceptions=True)
        failures = []
        for subscription, answer in zip(subscriptions, answers, strict=True):
            if answer is GONE:
                await self._forget(subscription.id)
            elif answer is not None:
                failures.append(answer)
                if not isinstance(answer, Failed | Refused):
                    log.error("push_failed", subscription_id=subscription.id, exc_info=answer)
        if None in answers:
            return
        passing = [each for each in failures if isinstance(each, Failed)]
        if passing:
            raise Failed(str(passing[0]), retry_after_s=passing[0].retry_after_s)
        if failures:
            raise failures[0]
        raise NoAddress("gone" if subscriptions else "no subscription")

    async def close(self) -> None:
        """See ``Sender``."""
        await self._client.aclose()

    async def _push(self, message: Message, subscription: PushSubscription) -> Exception | None:
        """``None`` where the browser's service has it, else why not."""
        notification = message.content.notification
        payload = {
            "id": notification.id,
            "title": cut(message.words.subject, PAYLOAD_BYTES_MAX // 4),
            "body": cut(message.words.short, PAYLOAD_BYTES_MAX // 2),
        }
        left_s = int(notification.expires_at.timestamp() - time.time())
        headers = {
            "Authorization": self._keys.authorization(subscription.endpoint),
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "TTL": str(min(max(left_s, 0), TTL_MAX_S)),
            "Urgency": "high",
            "Topic": notification.id.replace("-", ""),  # 32 characters: a repeat takes the place of what waits there.
        }
        try:
            answer = await post(
                self._client, subscription.endpoint, content=encrypt(payload, subscription), headers=headers
            )
            if answer.status_code in GONE_STATUS:
                return GONE
            check(answer)
        except (Failed, Refused) as failure:
            return failure
        except httpx.InvalidURL:  # It never was one: nothing becomes of it.
            return GONE
        return None


def encrypt(payload: object, subscription: PushSubscription) -> bytes:
    """The payload for that browser alone."""
    body: bytes = http_ece.encrypt(
        orjson.dumps(payload),
        private_key=ec.generate_private_key(CURVE),
        dh=unbase64url(subscription.p256dh),
        auth_secret=unbase64url(subscription.auth),
        version="aes128gcm",
    )
    return body


def cut(text: str, bytes_max: int) -> str:
    """As much of it as fits."""
    return text.encode()[:bytes_max].decode(errors="ignore")


def is_push_service(endpoint: str, hosts: Iterable[str]) -> bool:
    """Whether that is an address of one of these hosts; one that begins with a dot stands for all below it.

    Anybody may name an address to push to: only known ones are spoken to, by HTTPS, or on this machine where it is one.
    """
    if not _ADDRESS.fullmatch(endpoint):
        return False
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.username is not None or parts.fragment or not all(map(_LABEL.fullmatch, host.split("."))):
        return False
    for known in hosts:
        if known in ("127.0.0.1", "localhost"):
            if host == known and parts.scheme == "http":
                return True
        elif (
            parts.scheme == "https"
            and port in (None, 443)
            and (host == known or (known.startswith(".") and host.endswith(known)))
        ):
            return True
    return False


def is_browser_key(p256dh: str, auth: str) -> bool:
    """Whether these are a point of the curve and a secret, as a browser makes them."""
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(CURVE, unbase64url(p256dh))
        return len(unbase64url(auth)) == 16
    except ValueError:
        return False


def base64url(data: bytes) -> str:
    """Without padding."""
    return urlsafe_b64encode(data).decode().rstrip("=")


def unbase64url(text: str) -> bytes:
    """What ``base64url`` made, or a browser, perhaps with padding.

    Raises:
        ValueError: it is none.
    """
    return urlsafe_b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4))
