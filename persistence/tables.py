"""Every table of zapis, as SQLAlchemy Core metadata; the migrations create exactly these.

Three rules hold for all of them. Nothing about a person is in clear: what a person entered is in a ``sealed`` column
(see ``persistence.sealed``) and what must be found exactly has an HMAC index beside it. The tables of the first group
are written by the journal alone, in the transaction of the events they follow from; everybody else only reads them.
They have no foreign keys into the other groups: people and directory entries are never deleted, only erased or
withdrawn, and a check per row would cost the hot path as much as the write itself.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, ExcludeConstraint
from sqlalchemy.types import UserDefinedType

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Xid8(UserDefinedType[int]):
    """A transaction id that never comes again (``pg_current_xact_id``)."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Its name in DDL."""
        return "XID8"


def _id(name: str = "id", *, primary_key: bool = True) -> Column[str]:
    return Column(name, Uuid(as_uuid=False), primary_key=primary_key, nullable=False)


def _reference(name: str, target: str | None = None, *, nullable: bool = False) -> Column[str]:
    constraint = [ForeignKey(target)] if target else []
    return Column(name, Uuid(as_uuid=False), *constraint, nullable=nullable)


def _instant(name: str, *, nullable: bool = False, now: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=func.now() if now else None)


# Written by the journal alone.

calendar = Table(
    "calendar",
    metadata,
    _id("doctor_id"),
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("sequence", BigInteger, nullable=False, server_default=text("0")),
    Column("last_event_at", DateTime(timezone=True), nullable=True),
    Column("changed_in", Xid8(), nullable=True, comment="the transaction of its last event"),
    Index(None, "changed_in"),
    comment="One row a doctor: who owns the calendar (epoch) and how far its journal reaches (sequence).",
)

event = Table(
    "event",
    metadata,
    _id("doctor_id"),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    _instant("at"),
    Column("kind", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    _reference("command_id"),
    Column("effect", JSONB, nullable=True, comment="what it changed: {slots, appointments}"),
    comment="The journal: append-only, gapless within a calendar, never truncated. Holds ids only.",
)

command = Table(
    "command",
    metadata,
    _id("command_id"),
    _reference("user_id"),
    Column("fingerprint", Text, nullable=False),
    Column("answer", JSONB, nullable=False),
    _instant("at"),
    Index(None, "at"),
    comment="Answers already given, by command id, kept for seven days: a repeat has no second effect.",
)

slot = Table(
    "slot",
    metadata,
    _id(),
    _reference("doctor_id"),
    _reference("location_id"),
    _reference("service_id", nullable=True),
    _instant("starts_at"),
    _instant("ends_at"),
    Column("status", Text, nullable=False, comment="free, held, booked, blocked or cancelled"),
    Column("blocked", Boolean, nullable=False, server_default=text("false"), comment="by hand, not by a closure"),
    _instant("held_until", nullable=True),
    Index(None, "doctor_id", "starts_at", "id"),
    Index(None, "location_id", "starts_at", "id"),
    Index(None, "starts_at", "id"),
    CheckConstraint("ends_at > starts_at", name="interval"),
    postgresql_with={"fillfactor": 85},  # A status changes in place: no index is on it, and its page has room.
    comment="No exclusion constraint: tens of millions of rows; only live appointments are guarded.",
)

hold = Table(
    "hold",
    metadata,
    _id(),
    _reference("doctor_id"),
    _reference("slot_id"),
    _reference("user_id"),
    _instant("expires_at"),
    Index(None, "doctor_id"),
    Index(None, "user_id"),
    Index(None, "expires_at"),
    comment="Holds that have not ended; a row past its time reads as absent.",
)

appointment = Table(
    "appointment",
    metadata,
    _id(),
    _reference("doctor_id"),
    _reference("patient_id"),
    _reference("booked_by"),
    _reference("slot_id"),
    _reference("location_id"),
    _reference("service_id", nullable=True),
    _instant("starts_at"),
    _instant("ends_at"),
    Column("status", Text, nullable=False),
    Column("live", Boolean, nullable=False),
    Column("displaced", Boolean, nullable=False, server_default=text("false")),
    Column("version", Integer, nullable=False),
    Column("moves", Integer, nullable=False, server_default=text("0")),
    _instant("created_at"),
    _instant("updated_at"),
    Column("reason", LargeBinary, nullable=True, comment="sealed under the patient's data key"),
    Column("cancel_reason", LargeBinary, nullable=True, comment="sealed under the data key of who cancelled"),
    Column("open_move_id", Uuid(as_uuid=False), nullable=True),
    Index(None, "doctor_id", "starts_at", "id"),
    Index(None, "patient_id", "starts_at", "id"),
    Index(None, "starts_at", "id"),
    ExcludeConstraint(
        (Column("doctor_id"), "="),
        (literal_column("tstzrange(starts_at, ends_at)"), "&&"),
        using="gist",
        where=text("live"),
        deferrable=True,
        initially="DEFERRED",
        name="ex_appointment_doctor",
    ),
    ExcludeConstraint(
        (Column("patient_id"), "="),
        (literal_column("tstzrange(starts_at, ends_at)"), "&&"),
        using="gist",
        where=text("live"),
        deferrable=True,
        initially="DEFERRED",
        name="ex_appointment_patient",
    ),
)

move = Table(
    "move",
    metadata,
    _id(),
    _reference("appointment_id"),
    _reference("source_doctor_id"),
    _reference("target_doctor_id"),
    _reference("target_slot_id"),
    Column("state", Text, nullable=False, comment="reserved, moved, done, aborted or released"),
    Column("request", JSONB, nullable=False, comment="what is needed to drive the move on: ids only"),
    _instant("created_at"),
    _instant("updated_at"),
    Index(None, "target_doctor_id", postgresql_where=text("state IN ('reserved', 'moved', 'aborted')")),
    Index(None, "updated_at", postgresql_where=text("state IN ('reserved', 'moved', 'aborted')")),
    CheckConstraint("state IN ('reserved', 'moved', 'done', 'aborted', 'released')", name="state"),
    comment="A move of an appointment to another doctor's calendar.",
)

closure = Table(
    "closure",
    metadata,
    _id(),
    _reference("doctor_id"),
    Column("windows", JSONB, nullable=False, comment="[[location id or null, from, to], ...], half-open"),
    _instant("ends_at"),
    Column("reason", LargeBinary, nullable=True, comment="sealed under the data key of who closed"),
    _reference("created_by"),
    _instant("created_at"),
    _instant("removed_at", nullable=True),
    Index(None, "doctor_id", "ends_at"),
)

outbox = Table(
    "outbox",
    metadata,
    _id(),
    Column("kind", Text, nullable=False),
    Column("doctor_id", Uuid(as_uuid=False), nullable=True),
    Column("sequence", BigInteger, nullable=True, comment="of the event that caused it"),
    Column("appointment_id", Uuid(as_uuid=False), nullable=True),
    Column("version", Integer, nullable=True),
    Column("patient_id", Uuid(as_uuid=False), nullable=True),
    Column("user_id", Uuid(as_uuid=False), nullable=True),
    Column("sealed", LargeBinary, nullable=True, comment="a code to send, sealed under the user's data key"),
    _instant("due_at"),
    _instant("planned_at", nullable=True),
    UniqueConstraint("appointment_id", "version", "kind"),
    Index(None, "due_at", postgresql_where=text("planned_at IS NULL")),
    Index("ix_outbox_sealed", "due_at", postgresql_where=text("sealed IS NOT NULL")),
    comment="What people have to be told, written with what causes it. Ids only: it is put in words when it is sent.",
)

notification = Table(
    "notification",
    metadata,
    _id(),
    _reference("outbox_id"),
    Column("kind", Text, nullable=False),
    Column("ahead", Text, nullable=False, comment="of a reminder, how long before the visit (ISO 8601); else empty"),
    Column("channel", Text, nullable=False),
    _reference("user_id"),
    _reference("appointment_id", nullable=True),
    Column("version", Integer, nullable=True, comment="of the appointment that it is about"),
    _instant("due_at"),
    _instant("expires_at"),
    _instant("next_at"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    _instant("ended_at", nullable=True),
    Column("outcome", Text, nullable=True, comment="sent, void, late, unwanted, unreachable, capped or dead"),
    Column("failure", Text, nullable=True, comment="what the last attempt failed with: a code, no address"),
    _instant("leased_until", nullable=True),
    UniqueConstraint("outbox_id", "kind", "ahead", "channel", "user_id"),
    Index(None, "channel", "next_at", postgresql_where=text("ended_at IS NULL")),
    Index(None, "appointment_id", postgresql_where=text("ended_at IS NULL")),
    Index(None, "user_id", "id"),
    Index(None, "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    Index("ix_notification_unsaid", "outcome", "id", postgresql_where=text("outcome NOT IN ('sent', 'void')")),
    # A lease changes no column of an index: where the page has room for the new row, no index is written.
    postgresql_with={"fillfactor": 80},
    comment="Messages: one for each user, channel and moment. next_at: due, or when its pause ends.",
)

notification_preference = Table(
    "notification_preference",
    metadata,
    Column("user_id", Uuid(as_uuid=False), ForeignKey("app_user.id"), primary_key=True),
    Column("chosen", JSONB, nullable=False),
    _instant("updated_at"),
    comment="What users want to hear of; whoever has no row has not chosen.",
)

notification_template = Table(
    "notification_template",
    metadata,
    _id(),
    Column("kind", Text, nullable=False),
    Column("language", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("subject", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("short", Text, nullable=False),
    _reference("created_by"),
    _instant("created_at"),
    UniqueConstraint("kind", "language", "version"),
    comment="Texts that administrators have written; the last version is said, the others are kept.",
)

push_subscription = Table(
    "push_subscription",
    metadata,
    _id(),
    _reference("user_id", "app_user.id"),
    Column("endpoint_index", LargeBinary, nullable=False, unique=True),
    Column("sealed", LargeBinary, nullable=False, comment="JSON {endpoint, p256dh, auth}, under the user's data key"),
    _instant("created_at"),
    Index(None, "user_id"),
    comment="Browsers that can be pushed to.",
)

known_device = Table(
    "known_device",
    metadata,
    Column("user_id", Uuid(as_uuid=False), ForeignKey("app_user.id"), primary_key=True),
    Column("device_index", LargeBinary, primary_key=True, comment="HMAC of what it says of itself"),
    _instant("seen_at"),
    comment="From what a user has signed in: another one is told to them.",
)

audit = Table(
    "audit",
    metadata,
    _id(),
    _instant("at"),
    _reference("user_id"),
    Column("role", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False, comment="what kind of thing: appointment, slot, user, ..."),
    Column("subject_id", Uuid(as_uuid=False), nullable=True),
    Column("override", LargeBinary, nullable=True, comment="override reason, sealed under the acting user's data key"),
    Index(None, "at", "id"),
    comment="Who did what to what; written by the journal for calendars and by the unit of work for the rest.",
)

placement = Table(
    "placement",
    metadata,
    Column("single", Boolean, primary_key=True, server_default=text("true")),
    Column("generation", BigInteger, nullable=False),
    Column("mode", Text, nullable=False),
    Column("actors", Integer, nullable=False),
    CheckConstraint("single", name="one_row"),
    CheckConstraint("mode IN ('shared', 'dedicated')", name="mode"),
    CheckConstraint("actors BETWEEN 1 AND 1024", name="actors"),
    comment="How calendars are spread over calendar actors, with a generation that only rises.",
)

# People.

app_user = Table(
    "app_user",
    metadata,
    _id(),
    Column("login_index", LargeBinary, nullable=False, unique=True),
    Column("password_hash", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("data_key", LargeBinary, nullable=True, comment="wrapped under the master key; null once erased"),
    Column("sealed", LargeBinary, nullable=True, comment="JSON {login, name, email, phone}"),
    Column("email_index", LargeBinary, nullable=True),
    Column("phone_index", LargeBinary, nullable=True),
    _instant("email_verified_at", nullable=True),
    _instant("phone_verified_at", nullable=True),
    Column("locale", Text, nullable=False, server_default=text("'en'")),
    Column("timezone", Text, nullable=False, server_default=text("'UTC'")),
    _reference("patient_id", nullable=True),
    _reference("doctor_id", nullable=True),
    Column("session_generation", Integer, nullable=False, server_default=text("0"), comment="raised: sessions end"),
    Column("kept_session_id", Uuid(as_uuid=False), nullable=True, comment="went on when it was raised last"),
    _instant("registered_at", now=True),
    _instant("disabled_at", nullable=True),
    _instant("erased_at", nullable=True),
    CheckConstraint("role IN ('patient', 'doctor', 'admin')", name="role"),
    Index(
        "uq_app_user_email_verified",
        "email_index",
        unique=True,
        postgresql_where=text("email_verified_at IS NOT NULL"),
    ),
    Index(
        "uq_app_user_phone_verified",
        "phone_index",
        unique=True,
        postgresql_where=text("phone_verified_at IS NOT NULL"),
    ),
    Index(None, "email_index"),
    Index(None, "registered_at", "id"),
)

patient = Table(
    "patient",
    metadata,
    _id(),
    Column("data_key", LargeBinary, nullable=True, comment="wrapped under the master key; null once erased"),
    Column("sealed", LargeBinary, nullable=True, comment="JSON {name, birth_date, phone}"),
    Column("search", ARRAY(LargeBinary), nullable=False, comment="HMACs of name words, birth date and phone"),
    _instant("created_at", now=True),
    Index(None, "search", postgresql_using="gin"),
)

user_patient = Table(
    "user_patient",
    metadata,
    Column("user_id", Uuid(as_uuid=False), ForeignKey("app_user.id"), primary_key=True),
    Column("patient_id", Uuid(as_uuid=False), ForeignKey("patient.id"), primary_key=True),
    Column("relation", Text, nullable=False),
    Index(None, "patient_id"),
    comment="For whom a user may book.",
)

refresh_token = Table(
    "refresh_token",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True, comment="SHA-256 of a 256-bit random token"),
    _reference("family_id"),
    _reference("user_id", "app_user.id"),
    _instant("issued_at", now=True),
    _instant("expires_at"),
    _instant("used_at", nullable=True),
    _instant("revoked_at", nullable=True),
    Index(None, "family_id"),
    Index(None, "user_id"),
    Index(None, "expires_at"),
)

calendar_link = Table(
    "calendar_link",
    metadata,
    _id(),
    _reference("user_id", "app_user.id"),
    Column("secret_hash", LargeBinary, nullable=False, unique=True, comment="SHA-256 of a 256-bit random secret"),
    _instant("created_at"),
    Index(None, "user_id"),
)

verification_code = Table(
    "verification_code",
    metadata,
    _id(),
    _reference("user_id", "app_user.id"),
    Column("purpose", Text, nullable=False, comment="email, phone or password"),
    Column("code_index", LargeBinary, nullable=False, comment="HMAC of the code with the user and purpose"),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    _instant("created_at", now=True),
    _instant("expires_at"),
    _instant("used_at", nullable=True),
    Index(None, "user_id", "purpose"),
    Index(None, "code_index"),
)

signing_key = Table(
    "signing_key",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("public_pem", Text, nullable=False),
    Column("private_sealed", LargeBinary, nullable=False, comment="PEM sealed under the master key"),
    _instant("created_at", now=True),
    _instant("retired_at", nullable=True),
)

# The directory.

location = Table(
    "location",
    metadata,
    _id(),
    Column("name", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("timezone", Text, nullable=False),
    _instant("created_at", now=True),
)

service = Table(
    "service",
    metadata,
    _id(),
    Column("name", Text, nullable=False),
    Column("minutes", Integer, nullable=False),
    Column("price_amount_minor", BigInteger, nullable=True),
    Column("price_currency", Text, nullable=True),
    _instant("created_at", now=True),
    CheckConstraint("(price_amount_minor IS NULL) = (price_currency IS NULL)", name="price"),
)

doctor = Table(
    "doctor",
    metadata,
    _id(),
    _reference("user_id", "app_user.id"),
    Column("sealed", LargeBinary, nullable=False, comment="JSON {name} under the data key of the doctor's user"),
    Column("search", ARRAY(LargeBinary), nullable=False, comment="HMACs of the name words and their beginnings"),
    Column("specialties", ARRAY(Text), nullable=False),
    Column("location_ids", ARRAY(Uuid(as_uuid=False)), nullable=False),
    Column("service_ids", ARRAY(Uuid(as_uuid=False)), nullable=False),
    _instant("created_at", now=True),
    _instant("withdrawn_at", nullable=True),
    Index(None, "search", postgresql_using="gin"),
    Index(None, "specialties", postgresql_using="gin"),
    Index(None, "location_ids", postgresql_using="gin"),
    Index(None, "service_ids", postgresql_using="gin"),
    UniqueConstraint("user_id"),
)

schedule_template = Table(
    "schedule_template",
    metadata,
    _id(),
    _reference("doctor_id", "doctor.id"),
    Column("name", Text, nullable=False),
    _reference("location_id", "location.id"),
    Column("valid_from", Date, nullable=False),
    Column("valid_to", Date, nullable=True),
    Column("rules", JSONB, nullable=False),
    _instant("created_at", now=True),
    Index(None, "doctor_id"),
)
