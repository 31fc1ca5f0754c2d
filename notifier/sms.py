"""SMS by a provider: one that speaks as Twilio does, or any by a webhook.

The message's id goes along as ``Idempotency-Key``, so a provider that knows it sends a repeat once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from notifier.http import check, open_client, post
from notifier.senders import Message

LENGTH_MAX: Final = 480
"""Some three parts of an SMS in Cyrillic; what is longer is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmsProvider:
    """Where SMS are handed in."""

    url: str = field(repr=False)
    twilio: bool
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sender: str | None = None

    @classmethod
    def from_url(cls, url: str) -> SmsProvider:
        """Of ``twilio://SID:token@api.twilio.com?from=+15550100``, or a webhook's ``https://:token@host/path``.

        ``twilio+http`` and ``http`` are for providers on this machine.
        """
        parts = urlsplit(url)
        where = parts.netloc.rpartition("@")[2]
        user, password = (unquote(each) if each else None for each in (parts.username, parts.password))
        secure = "http" if parts.scheme.endswith("http") else "https"
        if not parts.scheme.startswith("twilio"):
            query = f"?{parts.query}" if parts.query else ""
            return cls(url=f"{secure}://{where}{parts.path}{query}", twilio=False, user=user, password=password)
        return cls(
            url=f"{secure}://{where}/2010-04-01/Accounts/{user}/Messages.json",
            twilio=True,
            user=user,
            password=password,
            sender=parse_qs(parts.query).get("from", [None])[0],
        )


class SmsSender:
    """``Sender`` by HTTP."""

    def __init__(self, provider: SmsProvider) -> None:
        self._provider = provider
        self._client = open_client()

    async def send(self, message: Message) -> None:
        """See ``Sender``."""
        provider, content = self._provider, message.content
        key = content.notification.id
        text = message.words.short[:LENGTH_MAX]
        if provider.twilio:
            answer = await post(
                self._client,
                provider.url,
                auth=(provider.user or "", provider.password or ""),
                data={"To": content.user.phone, "From": provider.sender or "", "Body": text},
                headers={"Idempotency-Key": key},
            )
        else:
            headers = {"Idempotency-Key": key}
            if provider.password is not None:
                headers["Authorization"] = f"Bearer {provider.password}"
            body = {"id": key, "to": content.user.phone, "text": text}
            answer = await post(self._client, provider.url, json=body, headers=headers)
        check(answer)

    async def close(self) -> None:
        """See ``Sender``."""
        await self._client.aclose()
