"""A real SMTP server that may fail, be slow, keep answers to itself or be away, and remembers what it has accepted."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from ipaddress import ip_address
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from cluster.data_directory import LOOPBACK


@dataclass(slots=True, kw_only=True)
class MailServer:
    """Where mail arrives."""

    failing: float = 0.0
    """How many of ten attempts, as a fraction, are refused in passing (451)."""
    slow_s: float = 0.0
    in_hand: int = 0
    """How many mails came while it was slow."""
    withheld: int = 0
    """So many answers are not given: the mail is accepted, and the connection ends."""
    answers_withheld: int = 0
    wants_sender: bool = True
    refused: set[str] = field(default_factory=set)
    """Addresses that nobody has (550)."""
    mails: list[EmailMessage] = field(default_factory=list)
    tls: ssl.SSLContext | None = None
    starttls: bool = False
    """Whether a connection begins in the clear."""
    port: int = 0
    dice: random.Random = field(default_factory=lambda: random.Random(1))
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Answer, on the port that it had before."""
        loop = asyncio.get_running_loop()
        at_once = None if self.starttls else self.tls
        self._server = await loop.create_server(self._protocol, LOOPBACK, self.port, ssl=at_once)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _protocol(self) -> SMTP:
        return SMTP(
            self,
            hostname="mail.example",
            tls_context=self.tls if self.starttls else None,
            require_starttls=self.starttls,
            enable_SMTPUTF8=True,
            loop=asyncio.get_running_loop(),
        )

    async def handle_MAIL(  # noqa: N802  # aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Whether mail of that sender is taken."""
        if not self.wants_sender:
            return "550 not from you"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(  # noqa: N802  # aiosmtpd's name
        self, server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Whether somebody has the address."""
        if self._server is None:
            return "421 going down"
        if address in self.refused:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Take the mail, or not."""
        if self.slow_s:
            self.in_hand += 1
            await asyncio.sleep(self.slow_s)  # Whoever goes away meanwhile has sent nothing.
        if self.dice.random() < self.failing:
            return "451 try again later"
        content = envelope.content
        assert isinstance(content, bytes)
        self.keep(content)
        if self.withheld:
            self.withheld -= 1
            self.answers_withheld += 1
            assert isinstance(server.transport, asyncio.Transport)
            server.transport.abort()
        return "250 OK"

    def keep(self, content: bytes) -> None:
        """Remember a mail that was accepted."""
        self.mails.append(message_from_bytes(content, policy=policy.default))

    @property
    def by_message_id(self) -> Counter[str]:
        """How often each mail was accepted."""
        return Counter(str(mail["Message-ID"]) for mail in self.mails)

    def to(self, address: str) -> list[EmailMessage]:
        """What somebody got, in order."""
        return [mail for mail in self.mails if address in str(mail["To"])]


@asynccontextmanager
async def mail_server(tls: ssl.SSLContext | None = None, *, starttls: bool = False) -> AsyncIterator[MailServer]:
    """A mail server for as long as the block lasts."""
    logging.getLogger("mail.log").setLevel(logging.WARNING)  # aiosmtpd's; every word of a conversation otherwise.
    server = MailServer(tls=tls, starttls=starttls)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def make_certificate(directory: Path) -> Path:
    """A file with a new certificate for this machine and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(LOOPBACK))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = directory / "certificate.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(certificate.public_bytes(Encoding.PEM) + private)
    return file
