"""A wrong setting is one line that names it, and never shows what may be secret."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from cluster.settings import Settings, SettingsError, describe_settings, read_settings, variable

KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "ZAPIS_PORT",
            "x",
            "ZAPIS_PORT: input should be a valid integer, unable to parse string as an integer, got 'x'",
        ),
        ("ZAPIS_PORT", "65536", "ZAPIS_PORT: input should be less than or equal to 65535, got '65536'"),
        (
            "ZAPIS_DEMO",
            "perhaps",
            "ZAPIS_DEMO: input should be a valid boolean, unable to interpret input, got 'perhaps'",
        ),
        (
            "ZAPIS_PUBLIC_URL",
            "https://клиника.рф",
            "ZAPIS_PUBLIC_URL: should be ASCII: write the host as xn--…, got 'https://клиника.рф'",
        ),
        ("ZAPIS_PROT", "8000", "ZAPIS_PROT: there is no such setting; did you mean ZAPIS_PORT?"),
        (
            "ZAPIS_HOLD_TTL_S",
            "99999999999999999999",
            "ZAPIS_HOLD_TTL_S: should be at most 315360000, got '99999999999999999999'",
        ),
        (
            "ZAPIS_CANCEL_CUTOFF_MINUTES",
            "9999999999",
            "ZAPIS_CANCEL_CUTOFF_MINUTES: should be at most 5256000, got '9999999999'",
        ),
        (
            "ZAPIS_ADMIN_LOGIN",
            "a b",
            "ZAPIS_ADMIN_LOGIN: a login should have 3 to 64 letters, digits and . _ - @ +, got 'a b'",
        ),
        ("ZAPIS_X", "1", "ZAPIS_X: there is no such setting; `zapis settings` lists what there is"),
        (
            "ZAPIS_CORS_ORIGINS",
            "clinic",
            "ZAPIS_CORS_ORIGINS: every origin should look like https://clinic.example, got 'clinic'",
        ),
        (
            "ZAPIS_TRUSTED_PROXIES",
            "me",
            "ZAPIS_TRUSTED_PROXIES: 'me' does not appear to be an IPv4 or IPv6 network, got 'me'",
        ),
        (
            "ZAPIS_DATABASE_URL",
            "mysql://u:secret@h/d",
            "ZAPIS_DATABASE_URL: should be a URL that starts with postgresql://",
        ),
        ("ZAPIS_REDIS_URL", "secret", "ZAPIS_REDIS_URL: should be a URL that starts with redis://"),
        (
            "ZAPIS_SMTP_URL",
            "smtp://u:secret@h:99999",
            "ZAPIS_SMTP_URL: should be a URL whose port is a number up to 65535",
        ),
        ("ZAPIS_SMTP_URL", "smtp://", "ZAPIS_SMTP_URL: should name a host, as smtp://mail.clinic.example"),
        (
            "ZAPIS_SMS_URL",
            "twilio://api.twilio.com?from=%2B15550100",
            "ZAPIS_SMS_URL: should look like twilio://SID:token@api.twilio.com?from=+15550100",
        ),
        ("ZAPIS_MASTER_KEY", "secret", "ZAPIS_MASTER_KEY: should be the base64 of 32 bytes"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refusal:
        read_settings()
    assert str(refusal.value) == message
    assert "secret" not in str(refusal.value)


def test_what_is_given_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZAPIS_PORT", "9000")
    assert read_settings().port == 9000
    assert read_settings(port=9001, host=None).port == 9001
    assert read_settings(port=9001, host=None).host == "127.0.0.1"


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZAPIS_PORT", "")
    monkeypatch.setenv("ZAPIS_DATABASE_URL", "")
    settings = read_settings()
    assert settings.port == 8000
    with pytest.raises(SettingsError, match=r"^ZAPIS_DATABASE_URL is missing$"):
        settings.require("database_url")


def test_lists_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZAPIS_TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.7,")
    monkeypatch.setenv("ZAPIS_CORS_ORIGINS", "https://a.example,http://localhost:3000")
    settings = read_settings()
    assert settings.trusted_proxies == ("10.0.0.0/8", "192.0.2.7/32")
    assert settings.cors_origins == ("https://a.example", "http://localhost:3000")


def test_the_master_key_comes_from_the_setting_or_its_file(tmp_path: Path) -> None:
    file = tmp_path / "master.key"
    file.write_text(KEY + "\n")
    assert Settings(master_key=KEY).master_key_bytes() == bytes(range(32))
    assert Settings(master_key_file=file).master_key_bytes() == bytes(range(32))
    with pytest.raises(SettingsError, match="ZAPIS_MASTER_KEY or ZAPIS_MASTER_KEY_FILE is missing"):
        Settings().master_key_bytes()
    with pytest.raises(SettingsError, match=r"^ZAPIS_MASTER_KEY_FILE: .*/nowhere: no such file or directory$"):
        Settings(master_key_file=tmp_path / "nowhere").master_key_bytes()
    file.write_text("short")
    with pytest.raises(SettingsError, match=r"^ZAPIS_MASTER_KEY_FILE: .*: should be the base64 of 32 bytes$"):
        Settings(master_key_file=file).master_key_bytes()


def test_secrets_are_not_in_the_repr() -> None:
    settings = Settings(
        database_url="postgresql://u:hidden@h/d", master_key=KEY, admin_password="hidden", redis_url="redis://:hidden@h"
    )
    assert "hidden" not in repr(settings)
    assert KEY not in repr(settings)


def test_every_setting_is_described() -> None:
    described = {name: meaning for name, _, meaning in describe_settings()}
    assert set(described) == {variable(name) for name in Settings.model_fields}
    assert all(described.values())
