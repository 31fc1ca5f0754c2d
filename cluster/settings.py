"""The settings: environment variables named ``ZAPIS_…``, read once at the start of a process.

``0`` in any limit means: no such limit. Units come last in a name. A wrong, missing or misspelt variable raises
``SettingsError`` with one line that names it; values that may be secret are never part of that line.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from email.utils import parseaddr
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from persistence.normal_forms import is_login, normal_login
from persistence.sealed import decode_key

PREFIX = "ZAPIS_"
PUSH_SERVICES = "fcm.googleapis.com,updates.push.services.mozilla.com,.notify.windows.com,web.push.apple.com"
COUNT_MAX = 1_000_000_000
LARGEST = {"s": 3_650 * 86_400, "minutes": 3_650 * 1_440, "days": 3_650}
"""The largest value of a setting by its unit: ten years."""


class OperatorError(Exception):
    """What whoever runs zapis can put right. The message is one line that says what; a command ends with it."""

    exit_code = 1


def reason_of(error: OSError) -> str:
    """What the operating system says is wrong, as it stands in such a line."""
    return (error.strerror or str(error)).lower()


def wrong_master_key() -> str:
    """What is said where the database knows another one."""
    return f"{variable('master_key')}: the keys of this database were sealed under another one"


class SettingsError(OperatorError):
    """A setting that is wrong, missing or unknown; the message names its variable."""

    exit_code = 2


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Every setting of every zapis process. ``read_settings`` makes one; nothing changes it afterwards."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True, extra="forbid")

    # Where things are.
    database_url: str | None = Field(
        None, repr=False, description="PostgreSQL, as postgresql://…; `up` starts its own without it"
    )
    read_database_url: str | None = Field(None, repr=False, description="a replica for reading; default: DATABASE_URL")
    cards_database_url: str | None = Field(
        None, repr=False, description="a database for patient cards; default: DATABASE_URL"
    )
    redis_url: str | None = Field(
        None, repr=False, description="Valkey or Redis, as redis://…; `up` starts its own without it"
    )
    ray_address: str | None = Field(
        None, description="a running Ray cluster, as host:port or auto; `up` starts its own without it"
    )
    ray_namespace: str = Field("zapis", min_length=1, description="the Ray namespace the actors live in")
    smtp_url: str | None = Field(
        None,
        repr=False,
        description="the mail server, as smtp+starttls://user:password@host:port, smtps:// or smtp://; `up` starts one"
        " that keeps what it gets without it",
    )
    smtp_ca_file: Path | None = Field(
        None, description="who vouches for the mail server, if not who does for everybody"
    )
    mail_from: str = Field("zapis <no-reply@zapis.invalid>", description="who e-mails come from")
    sms_url: str | None = Field(
        None,
        repr=False,
        description="who sends SMS: twilio://SID:token@api.twilio.com?from=+15550100, or a webhook as https://:token@host/",
    )
    push_hosts: CommaSeparated = Field(
        (), description=f"push services that may be pushed to, by commas, as {PUSH_SERVICES}; none: no push"
    )
    public_url: str | None = Field(None, description="where people reach the API, for links in messages")
    data_dir: Path = Field(Path(".zapis"), description="where `up` keeps its servers' data, keys and logs")
    host: str = Field("127.0.0.1", min_length=1, description="the address to serve on")
    port: int = Field(8000, ge=0, le=65535, description="the port to serve on; 0 takes a free one")
    demo: bool = Field(False, description="`up` loads the demo clinic")
    mailbox_dir: Path | None = Field(
        None, description="mail kept by `up`, shown to everybody at /dev/mailbox; on loopback only"
    )

    # Who may, and keys.
    admin_login: str = Field("admin", min_length=1, max_length=64, description="the login of the first admin")
    admin_password: str | None = Field(
        None, repr=False, description="the first admin's password; `up` makes one without it"
    )
    account_password: str | None = Field(
        None, repr=False, description="the password of accounts that `load` makes; made without it, and told"
    )
    master_key: str | None = Field(None, repr=False, description="base64 of 32 bytes: the key over all personal data")
    master_key_file: Path | None = Field(
        None, description="a file that holds MASTER_KEY; `up` makes one in its data directory"
    )
    token_issuer: str = Field("zapis", min_length=1, description="the `iss` of access tokens")
    token_audience: str = Field("zapis", min_length=1, description="the `aud` of access tokens")
    access_token_ttl_s: int = Field(900, ge=1, description="how long an access token is good")
    refresh_token_ttl_s: int = Field(30 * 86_400, ge=1, description="how long a refresh token is good")
    password_hashers: int = Field(2, ge=1, le=64, description="threads that hash passwords")
    password_queue_max: int = Field(64, ge=1, description="passwords waiting to be hashed, past it 503")
    login_failures_max: int = Field(10, ge=0, description="wrong passwords for one login in LOGIN_FAILURES_WINDOW_S")
    login_failures_window_s: int = Field(900, ge=1, description="see LOGIN_FAILURES_MAX")
    sessions_max: int = Field(50, ge=0, description="logins one user may have at once; the oldest end")
    link_ttl_s: int = Field(3600, ge=1, description="how long an e-mailed code to verify or reset is good")
    phone_code_ttl_s: int = Field(600, ge=1, description="how long a code sent to a phone is good")
    phone_code_attempts_max: int = Field(5, ge=1, le=100, description="attempts at one code sent to a phone")
    code_interval_s: int = Field(60, ge=0, description="the least time between two codes for one user and purpose")
    codes_a_day_max: int = Field(
        10, ge=0, description="codes for one user, and from one network to one mailbox or phone, in 24 hours"
    )
    own_patients_max: int = Field(10, ge=0, description="patients one user may book for")

    # The policy.
    hold_ttl_s: int = Field(300, ge=1, description="how long a hold lasts")
    holds_max: int = Field(3, ge=0, description="holds one user may have")
    live_appointments_max: int = Field(10, ge=0, description="live appointments one patient may have")
    moves_max: int = Field(5, ge=0, description="how often one appointment may be moved")
    book_cutoff_minutes: int = Field(0, ge=0, description="a slot is bookable until so long before its start")
    move_cutoff_minutes: int = Field(0, ge=0, description="a visit may be moved until so long before its start")
    cancel_cutoff_minutes: int = Field(0, ge=0, description="a visit may be cancelled until so long before its start")
    horizon_days: int = Field(180, ge=0, description="how far ahead a slot may be booked")
    cross_doctor_moves: bool = Field(True, description="whether a visit may be moved to another doctor")

    # The edge.
    trusted_proxies: CommaSeparated = Field(
        (),
        description="addresses or networks whose X-Forwarded-For is believed, and who are heard at once after a 503,"
        " by commas",
    )
    cors_origins: CommaSeparated = Field((), description="origins of web pages that may call the API, by commas")
    rate_limit: int = Field(1200, ge=0, description="requests a minute for one user or address; logins get a tenth")
    requests_max: int = Field(
        2000, ge=1, description="requests under way at once in one API process, fewer if they take long; past it 503"
    )
    feed_connections_max: int = Field(12_000, ge=1, description="feeds open at once in one API process")
    feed_connections_per_user_max: int = Field(20, ge=0, description="feeds one user may have open in one API process")
    body_bytes_max: int = Field(1 << 20, ge=1024, description="the largest request body")
    request_deadline_s: float = Field(10.0, gt=0, description="how long a request may take before it is given up")
    commit_timeout_s: float = Field(2.0, gt=0, description="how long a command waits for its commit before 202 pending")
    drain_timeout_s: int = Field(10, ge=0, description="how long requests in flight may take to end at a stop")
    start_timeout_s: int = Field(120, ge=1, description="how long `up` waits for what it starts")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least level that is logged"
    )
    log_format: Literal["console", "json"] = Field("console", description="logs for people or for machines")

    # Calendars.
    calendar_placement: Literal["shared", "dedicated"] = Field(
        "shared", description="calendars share actors, or one actor each"
    )
    calendar_actors: int = Field(1, ge=1, le=256, description="how many calendar actors share the calendars")
    active_calendars_max: int = Field(2000, ge=1, description="calendars one actor keeps in memory")
    calendar_idle_s: int = Field(300, ge=1, description="a calendar unused for so long leaves memory")
    lane_depth_max: int = Field(2000, ge=1, description="commands waiting for one calendar actor, past it 503")
    lane_batch_max: int = Field(128, ge=1, description="commands in one call to a calendar actor")
    journal_backlog_max: int = Field(5000, ge=1, description="uncommitted commands in one calendar actor, past it 503")
    redecide_max: int = Field(8, ge=1, description="how often a refused transaction is decided again, then 503")
    notifiers: int = Field(1, ge=0, le=64, description="notifier actors for each channel that has a provider")
    notifications_a_day_max: int = Field(30, ge=0, description="messages about visits to one user on one day")
    database_pool_max: int = Field(10, ge=1, le=1000, description="database connections of one process")

    @field_validator("*")
    @classmethod
    def _is_within_reason(cls, value: Any, info: ValidationInfo) -> Any:
        """No setting is so large that a date or a counter overflows."""
        if isinstance(value, int | float):
            unit = str(info.field_name).rpartition("_")[2]
            if not value <= LARGEST.get(unit, COUNT_MAX):  # NaN is not, either.
                raise ValueError(f"should be at most {LARGEST.get(unit, COUNT_MAX)}")
        return value

    @field_validator("admin_login")
    @classmethod
    def _is_login(cls, login: str) -> str:
        if not is_login(normal_login(login)):
            raise ValueError("a login should have 3 to 64 letters, digits and . _ - @ +")
        return login

    @field_validator("database_url", "read_database_url", "cards_database_url")
    @classmethod
    def _is_postgres(cls, url: str | None) -> str | None:
        return _checked_url(url, ("postgresql", "postgres", "postgresql+psycopg"))

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, url: str | None) -> str | None:
        return _checked_url(url, ("redis", "rediss", "unix"))

    @field_validator("smtp_url")
    @classmethod
    def _is_smtp(cls, url: str | None) -> str | None:
        checked = _checked_url(url, ("smtp", "smtps", "smtp+starttls"))
        if checked is not None and not urlsplit(checked).hostname:
            raise ValueError("should name a host, as smtp://mail.clinic.example")
        return checked

    @field_validator("sms_url")
    @classmethod
    def _is_sms_provider(cls, url: str | None) -> str | None:
        checked = _checked_url(url, ("twilio", "https", "twilio+http", "http"))
        if checked is not None:
            parts = urlsplit(checked)
            if not parts.hostname:
                raise ValueError("should name a host")
            if parts.scheme.startswith("twilio") and not (parts.username and parts.password and "from=" in parts.query):
                raise ValueError("should look like twilio://SID:token@api.twilio.com?from=+15550100")
        return checked

    @field_validator("mail_from")
    @classmethod
    def _is_sender(cls, sender: str) -> str:
        address = parseaddr(sender)[1]
        if not address.isascii() or not all(address.rpartition("@")[::2]) or any(each in sender for each in "\r\n"):
            raise ValueError("should look like Clinic <no-reply@clinic.example>")
        return sender

    @field_validator("public_url")
    @classmethod
    def _is_web_address(cls, url: str | None) -> str | None:
        checked = _checked_url(url, ("https", "http"))
        if checked is not None and not checked.isascii():  # Links stand in headers of mails.
            raise ValueError("should be ASCII: write the host as xn--…")
        return checked

    @field_validator("mailbox_dir")
    @classmethod
    def _is_shown_to_nobody_else(cls, directory: Path | None, info: ValidationInfo) -> Path | None:
        if directory is not None and not is_loopback(info.data.get("host", "")):
            raise ValueError(f"is for servers on loopback only, where {PREFIX}HOST is 127.0.0.1")
        return directory

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(network, strict=False)) for network in networks)

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query:
                raise ValueError("every origin should look like https://clinic.example")
        return origins

    @field_validator("master_key")
    @classmethod
    def _is_key(cls, key: str | None) -> str | None:
        if key is not None:
            decode_key(key)
        return key

    def master_key_bytes(self) -> bytes:
        """The 32 bytes of the master key, from MASTER_KEY or else from MASTER_KEY_FILE.

        Raises:
            SettingsError: neither is set, or the file cannot be read or holds no key.
        """
        if self.master_key is not None:
            return decode_key(self.master_key)
        if self.master_key_file is None:
            raise SettingsError(f"{PREFIX}MASTER_KEY or {PREFIX}MASTER_KEY_FILE is missing")
        try:
            return decode_key(self.master_key_file.read_text(encoding="ascii"))
        except OSError as error:
            reason = error.strerror or "cannot be read"
            raise SettingsError(f"{PREFIX}MASTER_KEY_FILE: {self.master_key_file}: {reason.lower()}") from None
        except ValueError as error:
            raise SettingsError(f"{PREFIX}MASTER_KEY_FILE: {self.master_key_file}: {error}") from None

    def require(self, *names: str) -> Self:
        """Itself, once every setting named (as ``database_url``) is given.

        Raises:
            SettingsError: one is missing.
        """
        for name in names:
            if getattr(self, name) is None:
                raise SettingsError(f"{variable(name)} is missing")
        return self


def read_settings(**given: Any) -> Settings:
    """The settings from the environment; ``given`` values other than None take precedence.

    Raises:
        SettingsError: a variable is wrong or unknown.
    """
    _refuse_unknown(os.environ)
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def is_loopback(host: str) -> bool:
    """Whether this is a name or an address of this very machine, reached from nowhere else."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def variable(name: str) -> str:
    """The environment variable of a setting: ``hold_ttl_s`` is ``ZAPIS_HOLD_TTL_S``."""
    return PREFIX + name.upper()


def describe_settings() -> Iterator[tuple[str, str, str]]:
    """Variable, default (empty: none) and meaning of every setting, in the order they are declared."""
    for name, field in Settings.model_fields.items():
        yield variable(name), _written(field.default), field.description or ""


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = {name.upper() for name in Settings.model_fields}
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper().removeprefix(PREFIX) not in known:
            near = difflib.get_close_matches(name.upper().removeprefix(PREFIX), sorted(known), n=1)
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else "; `zapis settings` lists what there is"
            raise SettingsError(f"{name}: there is no such setting{hint}")


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    message = first["msg"].removeprefix("Value error, ").splitlines()[0]
    message = message[:1].lower() + message[1:]
    field = Settings.model_fields.get(name)
    shown = "" if field is None or not field.repr else f", got {first['input']!r}"
    return f"{variable(name)}: {message}{shown}"


def _checked_url(url: str | None, schemes: tuple[str, ...]) -> str | None:
    if url is not None and not any(url.startswith(f"{scheme}://") for scheme in schemes):
        raise ValueError(f"should be a URL that starts with {schemes[0]}://")
    if url is not None:
        try:
            _ = urlsplit(url).port
        except ValueError:
            raise ValueError("should be a URL whose port is a number up to 65535") from None
    return url


def _written(default: object) -> str:
    match default:
        case None:
            return ""
        case bool():
            return "1" if default else "0"
        case tuple():
            return ",".join(default)
        case _:
            return str(default)
