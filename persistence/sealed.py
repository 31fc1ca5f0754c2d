"""What is known about people, unreadable without the master key, and erasable by destroying one small key.

Every user and every patient has a data key of its own, kept wrapped under the master key. What a person entered is
sealed under that key with AES-256-GCM, with the row and column it belongs to as associated data: a value that is
copied to another row, or to another column, does not open. Destroy the wrapped key and the person is erased, wherever
copies of the sealed values are.

What must be found exactly has an index: HMAC-SHA256 under a key of its own, so that nobody without the master key can
try out names or phone numbers on a stolen database.

Sealed form: version (1 byte) · nonce (12) · ciphertext with tag. A random nonce is safe for 2³² values under one key.
No name, number or key is ever part of a ``repr`` or of an exception.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections import OrderedDict
from collections.abc import Collection
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
VERSION: Final = b"\x01"


class Unreadable(Exception):
    """A sealed value that cannot be opened; the message says nothing about what is in it."""


class Erased(Unreadable):
    """The data key is gone: whoever it belonged to was erased."""

    def __init__(self) -> None:
        super().__init__("the data key was destroyed")


class Damaged(Unreadable):
    """The value was altered, cut, moved from another row or column, or sealed under another key."""

    def __init__(self) -> None:
        super().__init__("a sealed value does not open here")


class DataKey:
    """Seals and opens the values of one person; ``place`` makes the ``where`` that ties a value to its column."""

    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def __repr__(self) -> str:
        return "<DataKey>"

    def seal(self, plain: bytes, where: bytes) -> bytes:
        """``plain``, readable only with this key and only at ``where``."""
        nonce = os.urandom(NONCE_BYTES)
        return VERSION + nonce + self._aead.encrypt(nonce, plain, VERSION + where)

    def unseal(self, sealed: bytes | memoryview | None, where: bytes) -> bytes:
        """What was sealed at ``where``.

        Raises:
            Erased: there is nothing any more.
            Damaged: it was not sealed by this key at this place, or was changed since.
        """
        if sealed is None:
            raise Erased
        data = bytes(sealed)
        if len(data) < len(VERSION) + NONCE_BYTES + TAG_BYTES or data[:1] != VERSION:
            raise Damaged
        try:
            return self._aead.decrypt(data[1 : 1 + NONCE_BYTES], data[1 + NONCE_BYTES :], VERSION + where)
        except InvalidTag:
            raise Damaged from None

    def seal_json(self, value: Any, where: bytes) -> bytes:
        """``seal`` for plain JSON data."""
        return self.seal(orjson.dumps(value), where)

    def unseal_json(self, sealed: bytes | memoryview | None, where: bytes) -> Any:
        """``unseal`` for what ``seal_json`` made."""
        return orjson.loads(self.unseal(sealed, where))


class Vault:
    """Everything that needs the master key: it wraps data keys, and makes indexes and keys for single purposes.

    ``data_keys_max`` unwrapped keys are remembered; the ones unused for longest are let go.
    """

    def __init__(self, master_key: bytes, *, data_keys_max: int = 20_000) -> None:
        if len(master_key) != KEY_BYTES:
            raise ValueError(f"the master key should be {KEY_BYTES} bytes")
        self._master_key = bytes(master_key)
        self._wrapping = AESGCM(self.derive("wrap data keys"))
        self._index_key = self.derive("index")
        self._open: OrderedDict[tuple[str, bytes], DataKey] = OrderedDict()
        self._open_max = data_keys_max
        self.system = DataKey(self.derive("seal system values"))
        """Seals what belongs to nobody, as signing keys."""

    def __repr__(self) -> str:
        return "<Vault>"

    def new_data_key(self, owner: str) -> bytes:
        """A new data key for ``owner`` (``user:<id>`` or ``patient:<id>``), wrapped: this is what is stored."""
        nonce = os.urandom(NONCE_BYTES)
        return VERSION + nonce + self._wrapping.encrypt(nonce, os.urandom(KEY_BYTES), VERSION + owner.encode())

    def data_key(self, owner: str, wrapped: bytes | memoryview | None) -> DataKey:
        """The data key that ``new_data_key`` made for ``owner``.

        Raises:
            Erased: ``wrapped`` is none.
            Damaged: it is not a key of this owner under this master key.
        """
        if wrapped is None:
            raise Erased
        entry = (owner, bytes(wrapped))
        if (known := self._open.get(entry)) is not None:
            self._open.move_to_end(entry)
            return known
        data = entry[1]
        if len(data) != len(VERSION) + NONCE_BYTES + KEY_BYTES + TAG_BYTES or data[:1] != VERSION:
            raise Damaged
        try:
            key = self._wrapping.decrypt(data[1 : 1 + NONCE_BYTES], data[1 + NONCE_BYTES :], VERSION + owner.encode())
        except InvalidTag:
            raise Damaged from None
        opened = self._open[entry] = DataKey(key)
        if len(self._open) > self._open_max:
            self._open.popitem(last=False)
        return opened

    def forget(self, owners: Collection[str]) -> None:
        """Let go of the unwrapped keys of ``owners``, who were erased."""
        for entry in [entry for entry in self._open if entry[0] in owners]:
            del self._open[entry]

    def index(self, kind: str, value: str) -> bytes:
        """The same 32 bytes for the same value of the same kind; useless for guessing without the master key."""
        return hmac.digest(self._index_key, kind.encode() + b"\x00" + value.encode(), "sha256")

    def derive(self, purpose: str) -> bytes:
        """A key of 32 bytes for one purpose; it tells nothing about the master key or any other (HKDF, RFC 5869)."""
        return HKDF(
            algorithm=hashes.SHA256(), length=KEY_BYTES, salt=hashlib.sha256(b"zapis").digest(), info=purpose.encode()
        ).derive(self._master_key)


def decode_key(text: str) -> bytes:
    """A master key from its base64.

    Raises:
        ValueError: it is none.
    """
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(f"should be the base64 of {KEY_BYTES} bytes")
    return key


def place(table: str, row_id: str, column: str) -> bytes:
    """Where a sealed value lives; part of what it is sealed with."""
    return f"{table}:{row_id}:{column}".encode()


def user_owner(user_id: str) -> str:
    """The owner of a user's data key."""
    return f"user:{user_id}"


def patient_owner(patient_id: str) -> str:
    """The owner of a patient's data key."""
    return f"patient:{patient_id}"
