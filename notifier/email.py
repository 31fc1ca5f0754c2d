"""E-mail by SMTP: a few connections that are kept, an invitation with what is booked, headers that mail programs know.

The ``Message-ID`` is made of the message's own id: the same message sent twice has the same one (RFC 5322, 3.6.4).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.header import Header
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime, formataddr, parseaddr
from typing import Final
from urllib.parse import unquote, urlsplit

import aiosmtplib
from aiosmtplib import SMTP

from notifier.calendar_files import Visit, invitation
from notifier.contents import Content
from notifier.senders import Failed, Message, Refused
from persistence.normal_forms import ascii_email

PORTS: Final = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}
TIMEOUT_S: Final = 8.0
LINE_MAX: Final = 65
WORD_MAX: Final = 75
CRLF: Final = "\r\n"
KEPT_S: Final = 20.0
"""A connection that was not used for so long may have been ended by the server: another is made."""
INVITING: Final = frozenset({"booked", "moved", "cancelled_by_patient", "cancelled_by_clinic"})
_POLICY: Final = SMTP_POLICY.clone(cte_type="7bit")
_PERMANENT: Final = range(500, 600)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailServer:
    """Where mail is handed in, and by whom."""

    host: str
    port: int
    user: str | None
    password: str | None = field(repr=False)
    tls: bool
    starttls: bool
    sender: str
    """As ``Clinic <no-reply@clinic.example>``."""
    ca_file: str | None = None
    """Who vouches for the server, if not who vouches for everybody."""

    @classmethod
    def from_url(cls, url: str, *, sender: str, ca_file: str | None = None) -> MailServer:
        """Of ``smtp://``, ``smtp+starttls://`` or ``smtps://user:password@host:port``."""
        parts = urlsplit(url)
        return cls(
            host=parts.hostname or "localhost",
            port=parts.port or PORTS[parts.scheme],
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            tls=parts.scheme == "smtps",
            starttls=parts.scheme == "smtp+starttls",
            sender=sender,
            ca_file=ca_file,
        )


@dataclass(slots=True)
class _Kept:
    connection: SMTP
    used_at: float


class EmailSender:
    """``Sender`` by SMTP. As many connections as there are messages under way; the last used is used next."""

    def __init__(self, server: MailServer) -> None:
        self._server = server
        self._tls = _tls(server)
        self._kept: deque[_Kept] = deque()
        self._sender_address = parseaddr(server.sender)[1]

    async def send(self, message: Message) -> None:
        """See ``Sender``."""
        address = _address(message.content)
        mail = compose(message, sender=self._server.sender)
        connection = await self._connected()
        try:
            await connection.sendmail(self._sender_address, [address], mail)
        except aiosmtplib.SMTPRecipientsRefused as refusal:
            self._keep(connection)
            raise _failure(refusal.recipients[0].code) from None
        except aiosmtplib.SMTPSenderRefused as refusal:
            self._keep(connection)
            raise Failed(f"SMTP {refusal.code}", away=True) from None  # It is we who are refused, not the message.
        except aiosmtplib.SMTPResponseException as refusal:
            self._keep(connection)
            raise _failure(refusal.code) from None
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as failure:
            connection.close()
            raise Failed(type(failure).__name__, away=True) from None
        except BaseException:
            connection.close()
            raise
        self._keep(connection)

    async def close(self) -> None:
        """See ``Sender``."""
        while self._kept:
            self._kept.pop().connection.close()

    async def _connected(self) -> SMTP:
        now = asyncio.get_running_loop().time()
        while self._kept:
            kept = self._kept.pop()
            if kept.connection.is_connected and now - kept.used_at < KEPT_S:
                return kept.connection
            kept.connection.close()
        server = self._server
        connection = SMTP(
            hostname=server.host,
            port=server.port,
            timeout=TIMEOUT_S,
            use_tls=server.tls,
            start_tls=server.starttls,
            tls_context=self._tls,
            local_hostname="zapis.invalid" if "@" not in self._sender_address else None,
        )
        try:
            await connection.connect()
            if server.user is not None:
                await connection.login(server.user, server.password or "")
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as failure:
            connection.close()
            raise Failed(type(failure).__name__, away=True) from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _keep(self, connection: SMTP) -> None:
        if connection.is_connected:
            self._kept.append(_Kept(connection, asyncio.get_running_loop().time()))


def compose(message: Message, *, sender: str) -> bytes:
    """The e-mail: text, HTML, and an invitation where a visit was made, moved or cancelled."""
    content, words = message.content, message.words
    name, address = parseaddr(sender)
    recipient = _address(content)
    domain = address.rpartition("@")[2] or "zapis.invalid"
    mail = EmailMessage(policy=_POLICY)
    mail["Date"] = format_datetime(datetime.now(UTC))
    mail["Message-ID"] = f"<{content.notification.id}@{domain}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody answers that they are on holiday.
    if message.unsubscribe_url is not None:
        mail["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"  # RFC 8058
    mail.set_content(words.text)
    mail.add_alternative(words.html, subtype="html")
    if (visit := content.visit) is not None and content.confirmed and content.notification.kind in INVITING:
        method, file = invitation(
            Visit(appointment=visit.appointment, location=visit.location, summary=words.subject),
            organizer=address,
            attendee=recipient,
        )
        mail.add_alternative(file.decode(), subtype="calendar", params={"method": method})
    mail["Content-Language"] = words.language
    who = content.user.name if content.confirmed else ""
    head = [
        _header("From", _mailbox("From", name, address)),
        _header("To", _mailbox("To", who, recipient)),
        _header("Subject", _folded(words.subject)),
    ]
    if message.unsubscribe_url is not None:
        head.append(_header("List-Unsubscribe", f"<{message.unsubscribe_url}>"))
    return b"".join(head) + mail.as_bytes()


def _address(content: Content) -> str:
    """Whom it goes to.

    Raises:
        Refused: mail servers know no such address.
    """
    address = ascii_email(content.user.email)
    if address is None:
        raise Refused("address not ASCII")
    return address


def _header(name: str, value: str) -> bytes:
    """A header as it goes out. EmailMessage loses the spaces where it folds what is not ASCII, and encodes links."""
    return f"{name}: {value}{CRLF}".encode("ascii")


def _folded(subject: str) -> str:
    if subject.isascii() and len(subject) <= LINE_MAX:
        return subject
    return _encoded("Subject", subject)


def _mailbox(header: str, name: str, address: str) -> str:
    """As RFC 5322 (3.4) has it; what is not ASCII of the name is encoded."""
    name = " ".join(name.split())
    if not name:
        return f"<{address}>"
    if name.isascii():
        return formataddr((name, address))
    return f"{_encoded(header, name)}{CRLF} <{address}>"


def _encoded(header: str, value: str) -> str:
    """As words of 75 characters at most (RFC 2047, 2), each on a line of its own."""
    return Header(value, "utf-8", header_name=header, maxlinelen=WORD_MAX).encode(linesep=CRLF)


def _tls(server: MailServer) -> ssl.SSLContext | None:
    """Made once: reading who vouches for everybody takes twenty times as long as sending a mail."""
    if not (server.tls or server.starttls):
        return None
    context = ssl.create_default_context()
    if server.ca_file is not None:
        context.load_verify_locations(cafile=server.ca_file)
    return context


def _failure(code: int) -> Exception:
    return Refused(f"SMTP {code}") if code in _PERMANENT else Failed(f"SMTP {code}")
