"""Links by which a message can be switched off without signing in: signed, for one user, topic and channel.

They say what they switch off and nothing else, and do not expire: whoever has the e-mail may stop it (RFC 8058).
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as BadBase64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from notifier.plan import TOPICS
from notifier.preferences import Channel, Topic
from persistence.sealed import Vault

PATH: Final = "/v1/notifications/unsubscribe"
TOKEN_LENGTH_MAX: Final = 300
_TOKEN: Final = re.compile(f"[A-Za-z0-9_-]{{1,{TOKEN_LENGTH_MAX}}}")
_PURPOSE: Final = "unsubscribe links"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsubscribed:
    """What a link switches off."""

    user_id: str
    topic: Topic
    channel: Channel


class BadLink(Exception):
    """Nobody here made that link."""


def link_maker(vault: Vault, public_url: str) -> Callable[[str, str, Channel], str]:
    """Makes a link of a user's id, the kind of a message and the channel it goes by."""
    key = vault.derive(_PURPOSE)

    def make(user_id: str, kind: str, channel: Channel) -> str:
        said = f"{user_id} {TOPICS[kind].value} {channel.value}".encode()
        token = urlsafe_b64encode(said + hmac.digest(key, said, "sha256")).decode().rstrip("=")
        return f"{public_url.rstrip('/')}{PATH}?token={token}"

    return make


def read_link(vault: Vault, token: str) -> Unsubscribed:
    """What the link with this token switches off.

    Raises:
        BadLink
    """
    try:
        data = urlsafe_b64decode(token + "=" * (-len(token) % 4)) if _TOKEN.fullmatch(token) else b""
    except (BadBase64, ValueError):
        data = b""
    said, signature = data[:-32], data[-32:]
    if not said or not hmac.compare_digest(signature, hmac.digest(vault.derive(_PURPOSE), said, "sha256")):
        raise BadLink
    user_id, topic, channel = said.decode().split(" ")
    return Unsubscribed(user_id=user_id, topic=Topic(topic), channel=Channel(channel))
