"""Web Push: who may be pushed to, what is signed, what is encrypted."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import orjson
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from notifier.push import PAYLOAD_BYTES_MAX, PushKeys, cut, encrypt, is_browser_key, is_push_service, unbase64url
from persistence.repositories.push_subscriptions import PushSubscription
from persistence.sealed import Vault
from tests.providers import AUTH, BROWSER

HOSTS = ("fcm.googleapis.com", ".notify.windows.com", "127.0.0.1")


@pytest.mark.parametrize(
    ("endpoint", "known"),
    [
        ("https://fcm.googleapis.com/fcm/send/x", True),
        ("https://fcm.googleapis.com:443/x", True),
        ("https://db5.notify.windows.com/x", True),
        ("http://127.0.0.1:8080/push/x", True),
        ("http://fcm.googleapis.com/x", False),
        ("https://fcm.googleapis.com:8443/x", False),
        ("https://notify.windows.com.evil.example/x", False),
        ("https://xnotify.windows.com/x", False),
        ("https://user@fcm.googleapis.com/x", False),
        ("https://127.0.0.1/x", False),
        ("http://localhost/x", False),
        ("https://[::1", False),
        ("https://fcm.googleapis.com:x/", False),
        ("fcm.googleapis.com", False),
        ("https://xn--a.notify.windows.com/x", False),
        ("https://.notify.windows.com/x", False),
        (f"https://{'a' * 64}.notify.windows.com/x", False),
        ("https://a\\b.notify.windows.com/x", False),
        ("https://fcm.googleapis.com/x y", False),
        ("https://fcm.googleapis.com/\x00", False),
        ("https://fcm.googleapis.com/ä", False),
        ("", False),
    ],
)
def test_only_known_services_are_spoken_to(endpoint: str, known: bool) -> None:
    assert is_push_service(endpoint, HOSTS) is known


def test_whose_key_it_is_stays_and_what_is_signed_can_be_verified() -> None:
    vault = Vault(bytes(range(32)))
    keys = PushKeys(vault, subject="mailto:no-reply@clinic.example")
    assert keys.public_key == PushKeys(vault, subject="mailto:other@clinic.example").public_key
    assert keys.public_key != PushKeys(Vault(bytes(32)), subject="").public_key
    scheme, token, key = keys.authorization("https://fcm.googleapis.com/fcm/send/x").split(" ")
    assert (scheme, key) == ("vapid", f"k={keys.public_key}")
    head, claims, signature = token.removeprefix("t=").removesuffix(",").split(".")
    assert orjson.loads(unbase64url(head)) == {"typ": "JWT", "alg": "ES256"}
    said = orjson.loads(unbase64url(claims))
    assert (said["aud"], said["sub"]) == ("https://fcm.googleapis.com", "mailto:no-reply@clinic.example")
    assert 0 < said["exp"] - time.time() <= 24 * 3600
    raw = unbase64url(signature)
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), unbase64url(keys.public_key))
    point.verify(encode_dss_signature(r, s), f"{head}.{claims}".encode(), ec.ECDSA(hashes.SHA256()))


def test_what_is_pushed_is_never_more_than_services_take() -> None:
    assert cut("Привет", 5) == "Пр"
    keys = BROWSER.subscription("https://fcm.googleapis.com/x")["keys"]
    subscription = PushSubscription(
        id="s", user_id="u", endpoint="", p256dh=keys["p256dh"], auth=keys["auth"], created_at=datetime.now(UTC)
    )
    text = '"\\ä' * 9000
    payload = {"id": "0" * 36, "title": cut(text, PAYLOAD_BYTES_MAX // 4), "body": cut(text, PAYLOAD_BYTES_MAX // 2)}
    assert len(encrypt(payload, subscription)) <= 4096


def test_only_the_browser_reads_what_is_pushed() -> None:
    keys = BROWSER.subscription("https://fcm.googleapis.com/x")["keys"]
    assert is_browser_key(keys["p256dh"], keys["auth"])
    for wrong in (("", keys["auth"]), (keys["p256dh"], ""), (keys["p256dh"][:-4], keys["auth"]), ("ä", "ö")):
        assert not is_browser_key(*wrong)
    subscription = PushSubscription(
        id="s", user_id="u", endpoint="", p256dh=keys["p256dh"], auth=keys["auth"], created_at=datetime.now(UTC)
    )
    body = encrypt({"title": "Reminder"}, subscription)
    assert b"Reminder" not in body
    assert AUTH not in body
    assert BROWSER.read(body) == {"title": "Reminder"}
    assert encrypt({"title": "Reminder"}, subscription) != body
