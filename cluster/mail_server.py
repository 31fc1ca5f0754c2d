"""A mail server that keeps what it gets: `python -m cluster.mail_server --port … --directory …`, as `zapis up` runs it.

Real SMTP on loopback, for whoever has no mail server to give. Nothing leaves the machine: the last ``KEPT_MAX`` mails
stay in a Maildir.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import mailbox
import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session

from cluster.data_directory import LOOPBACK

KEPT_MAX = 1000
MAIL_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptMail:
    """A mail that was kept."""

    key: str
    mail: EmailMessage


class Keeper:
    """Keeps mails in a Maildir."""

    def __init__(self, directory: Path) -> None:
        self._maildir = mailbox.Maildir(directory, create=True)
        self._keys = deque(_keys_in_order(self._maildir))

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Keep a mail; aiosmtpd calls it."""
        content = envelope.content
        assert isinstance(content, bytes)
        try:
            self._keys.append(self._maildir.add(content))
            while len(self._keys) > KEPT_MAX:
                self._maildir.discard(self._keys.popleft())
        except OSError:
            return "452 no room"
        return "250 OK"


def kept_mails(directory: Path, *, limit: int) -> list[KeptMail]:
    """The last mails that were kept, the newest first."""
    if not directory.exists():
        return []
    maildir = mailbox.Maildir(directory, create=False)
    found = []
    for key in reversed(_keys_in_order(maildir)):
        mail = _read(maildir, key)
        if mail is not None:
            found.append(KeptMail(key=key, mail=mail))
        if len(found) == limit:
            break
    return found


def kept_mail(directory: Path, key: str) -> EmailMessage | None:
    """One of them."""
    maildir = mailbox.Maildir(directory, create=False)
    return _read(maildir, key) if directory.exists() and key in _keys_in_order(maildir) else None


def _read(maildir: mailbox.Maildir, key: str) -> EmailMessage | None:
    try:
        return message_from_bytes(maildir.get_bytes(key), policy=policy.default)
    except (KeyError, OSError):
        return None  # Another has taken its place meanwhile.


def _keys_in_order(maildir: mailbox.Maildir) -> list[str]:
    # A key begins with the second, and counts within it (see mailbox.Maildir._create_tmp).
    return sorted(maildir.keys(), key=_moment)


def _moment(key: str) -> tuple[int, str, int]:
    second, _, rest = key.partition(".")
    fraction, _, number = rest.partition(".")[0].partition("Q")
    return int(second), fraction.partition("P")[0].rjust(8, "0"), int(number or 0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cluster.mail_server", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.getLogger("mail.log").setLevel(logging.ERROR)  # It would name everybody who gets mail.
    asyncio.run(_serve(options.port, options.directory))


async def _serve(port: int, directory: Path) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    keeper = Keeper(directory)
    server = await loop.create_server(
        lambda: SMTP(keeper, hostname="localhost", data_size_limit=MAIL_BYTES_MAX, enable_SMTPUTF8=True, loop=loop),
        LOOPBACK,
        port,
    )
    async with server:
        await stopped.wait()


if __name__ == "__main__":
    main()
