"""The booking core."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS btree_gist")
    op.create_table(
        "app_user",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("login_index", sa.LargeBinary(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column(
            "data_key", sa.LargeBinary(), nullable=True, comment="wrapped under the master key; null once erased"
        ),
        sa.Column("sealed", sa.LargeBinary(), nullable=True, comment="JSON {login, name, email, phone}"),
        sa.Column("email_index", sa.LargeBinary(), nullable=True),
        sa.Column("phone_index", sa.LargeBinary(), nullable=True),
        sa.Column("email_verified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("phone_verified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("locale", sa.Text(), server_default=sa.text("'en'"), nullable=False),
        sa.Column("timezone", sa.Text(), server_default=sa.text("'UTC'"), nullable=False),
        sa.Column("patient_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("doctor_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column(
            "session_generation",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="raised: sessions end",
        ),
        sa.Column("kept_session_id", sa.Uuid(as_uuid=False), nullable=True, comment="went on when it was raised last"),
        sa.Column("registered_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("role IN ('patient', 'doctor', 'admin')", name=op.f("ck_app_user_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_app_user")),
        sa.UniqueConstraint("login_index", name=op.f("uq_app_user_login_index")),
    )
    op.create_index(op.f("ix_app_user_email_index"), "app_user", ["email_index"], unique=False)
    op.create_index(op.f("ix_app_user_registered_at_id"), "app_user", ["registered_at", "id"], unique=False)
    op.create_index(
        "uq_app_user_email_verified",
        "app_user",
        ["email_index"],
        unique=True,
        postgresql_where=sa.text("email_verified_at IS NOT NULL"),
    )
    op.create_index(
        "uq_app_user_phone_verified",
        "app_user",
        ["phone_index"],
        unique=True,
        postgresql_where=sa.text("phone_verified_at IS NOT NULL"),
    )
    op.create_table(
        "appointment",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("doctor_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("patient_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("booked_by", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("slot_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("location_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("service_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("live", sa.Boolean(), nullable=False),
        sa.Column("displaced", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("moves", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.LargeBinary(), nullable=True, comment="sealed under the patient's data key"),
        sa.Column(
            "cancel_reason", sa.LargeBinary(), nullable=True, comment="sealed under the data key of who cancelled"
        ),
        sa.Column("open_move_id", sa.Uuid(as_uuid=False), nullable=True),
        postgresql.ExcludeConstraint(
            (sa.column("doctor_id"), "="),
            (sa.literal_column("tstzrange(starts_at, ends_at)"), "&&"),
            where=sa.text("live"),
            deferrable="True",
            initially="DEFERRED",
            using="gist",
            name="ex_appointment_doctor",
        ),
        postgresql.ExcludeConstraint(
            (sa.column("patient_id"), "="),
            (sa.literal_column("tstzrange(starts_at, ends_at)"), "&&"),
            where=sa.text("live"),
            deferrable="True",
            initially="DEFERRED",
            using="gist",
            name="ex_appointment_patient",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_appointment")),
    )
    op.create_index(
        op.f("ix_appointment_doctor_id_starts_at_id"), "appointment", ["doctor_id", "starts_at", "id"], unique=False
    )
    op.create_index(op.f("ix_appointment_starts_at_id"), "appointment", ["starts_at", "id"], unique=False)
    op.create_index(
        op.f("ix_appointment_patient_id_starts_at_id"), "appointment", ["patient_id", "starts_at", "id"], unique=False
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False, comment="what kind of thing: appointment, slot, user, ..."),
        sa.Column("subject_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column(
            "override",
            sa.LargeBinary(),
            nullable=True,
            comment="override reason, sealed under the acting user's data key",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        comment="Who did what to what; written by the journal for calendars and by the unit of work for the rest.",
    )
    op.create_index(op.f("ix_audit_at_id"), "audit", ["at", "id"], unique=False)
    op.create_table(
        "calendar",
        sa.Column("doctor_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("sequence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_event_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("doctor_id", name=op.f("pk_calendar")),
        comment="One row a doctor: who owns the calendar (epoch) and how far its journal reaches (sequence).",
    )
    op.create_table(
        "closure",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("doctor_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column(
            "windows",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="[[location id or null, from, to], ...], half-open",
        ),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.LargeBinary(), nullable=True, comment="sealed under the data key of who closed"),
        sa.Column("created_by", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_closure")),
    )
    op.create_index(op.f("ix_closure_doctor_id_ends_at"), "closure", ["doctor_id", "ends_at"], unique=False)
    op.create_table(
        "command",
        sa.Column("command_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("answer", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("command_id", name=op.f("pk_command")),
        comment="Answers already given, by command id, kept for seven days: a repeat has no second effect.",
    )
    op.create_index(op.f("ix_command_at"), "command", ["at"], unique=False)
    op.create_table(
        "event",
        sa.Column("doctor_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("command_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.PrimaryKeyConstraint("doctor_id", "sequence", name=op.f("pk_event")),
        comment="The journal: append-only, gapless within a calendar, never truncated. Holds ids only.",
    )
    op.create_table(
        "hold",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("doctor_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("slot_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hold")),
        comment="Holds that have not ended; a row past its time reads as absent.",
    )
    op.create_index(op.f("ix_hold_doctor_id"), "hold", ["doctor_id"], unique=False)
    op.create_index(op.f("ix_hold_expires_at"), "hold", ["expires_at"], unique=False)
    op.create_index(op.f("ix_hold_user_id"), "hold", ["user_id"], unique=False)
    op.create_table(
        "location",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_location")),
    )
    op.create_table(
        "move",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("appointment_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("source_doctor_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("target_doctor_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("target_slot_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, comment="reserved, moved, done, aborted or released"),
        sa.Column(
            "request",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="what is needed to drive the move on: ids only",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state IN ('reserved', 'moved', 'done', 'aborted', 'released')", name=op.f("ck_move_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_move")),
        comment="A move of an appointment to another doctor's calendar.",
    )
    op.create_index(
        op.f("ix_move_target_doctor_id"),
        "move",
        ["target_doctor_id"],
        unique=False,
        postgresql_where=sa.text("state IN ('reserved', 'moved', 'aborted')"),
    )
    op.create_index(
        op.f("ix_move_updated_at"),
        "move",
        ["updated_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('reserved', 'moved', 'aborted')"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("doctor_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=True, comment="of the event that caused it"),
        sa.Column("appointment_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("patient_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column(
            "sealed", sa.LargeBinary(), nullable=True, comment="a code to send, sealed under the user's data key"
        ),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sa.UniqueConstraint("appointment_id", "version", "kind", name=op.f("uq_outbox_appointment_id_version_kind")),
        comment="Notifications to be sent, written with what causes them. Ids only: a message is rendered when it is sent.",
    )
    op.create_index(
        op.f("ix_outbox_due_at"), "outbox", ["due_at"], unique=False, postgresql_where=sa.text("sent_at IS NULL")
    )
    op.create_table(
        "patient",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column(
            "data_key", sa.LargeBinary(), nullable=True, comment="wrapped under the master key; null once erased"
        ),
        sa.Column("sealed", sa.LargeBinary(), nullable=True, comment="JSON {name, birth_date, phone}"),
        sa.Column(
            "search",
            postgresql.ARRAY(sa.LargeBinary()),
            nullable=False,
            comment="HMACs of name words, birth date and phone",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_patient")),
    )
    op.create_index(op.f("ix_patient_search"), "patient", ["search"], unique=False, postgresql_using="gin")
    op.create_table(
        "placement",
        sa.Column("single", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("actors", sa.Integer(), nullable=False),
        sa.CheckConstraint("mode IN ('shared', 'dedicated')", name=op.f("ck_placement_mode")),
        sa.CheckConstraint("actors BETWEEN 1 AND 1024", name=op.f("ck_placement_actors")),
        sa.CheckConstraint("single", name=op.f("ck_placement_one_row")),
        sa.PrimaryKeyConstraint("single", name=op.f("pk_placement")),
        comment="How calendars are spread over calendar actors, with a generation that only rises.",
    )
    op.create_table(
        "service",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("minutes", sa.Integer(), nullable=False),
        sa.Column("price_amount_minor", sa.BigInteger(), nullable=True),
        sa.Column("price_currency", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(price_amount_minor IS NULL) = (price_currency IS NULL)", name=op.f("ck_service_price")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_service")),
    )
    op.create_table(
        "signing_key",
        sa.Column("kid", sa.Text(), nullable=False),
        sa.Column("public_pem", sa.Text(), nullable=False),
        sa.Column("private_sealed", sa.LargeBinary(), nullable=False, comment="PEM sealed under the master key"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_signing_key")),
    )
    op.create_table(
        "slot",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("doctor_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("location_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("service_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.Text(), nullable=False, comment="free, held, booked, blocked or cancelled"),
        sa.Column(
            "blocked",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="by hand, not by a closure",
        ),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("ends_at > starts_at", name=op.f("ck_slot_interval")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_slot")),
        comment="No exclusion constraint: tens of millions of rows; only live appointments are guarded.",
        postgresql_with={"fillfactor": 85},
    )
    op.create_index(op.f("ix_slot_doctor_id_starts_at_id"), "slot", ["doctor_id", "starts_at", "id"], unique=False)
    op.create_index(op.f("ix_slot_location_id_starts_at_id"), "slot", ["location_id", "starts_at", "id"], unique=False)
    op.create_index(op.f("ix_slot_starts_at_id"), "slot", ["starts_at", "id"], unique=False)
    op.create_table(
        "doctor",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column(
            "sealed", sa.LargeBinary(), nullable=False, comment="JSON {name} under the data key of the doctor's user"
        ),
        sa.Column(
            "search",
            postgresql.ARRAY(sa.LargeBinary()),
            nullable=False,
            comment="HMACs of the name words and their beginnings",
        ),
        sa.Column("specialties", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("location_ids", postgresql.ARRAY(sa.Uuid(as_uuid=False)), nullable=False),
        sa.Column("service_ids", postgresql.ARRAY(sa.Uuid(as_uuid=False)), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["app_user.id"], name=op.f("fk_doctor_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_doctor")),
        sa.UniqueConstraint("user_id", name=op.f("uq_doctor_user_id")),
    )
    op.create_index(op.f("ix_doctor_location_ids"), "doctor", ["location_ids"], unique=False, postgresql_using="gin")
    op.create_index(op.f("ix_doctor_search"), "doctor", ["search"], unique=False, postgresql_using="gin")
    op.create_index(op.f("ix_doctor_specialties"), "doctor", ["specialties"], unique=False, postgresql_using="gin")
    op.create_table(
        "refresh_token",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False, comment="SHA-256 of a 256-bit random token"),
        sa.Column("family_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("issued_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["app_user.id"], name=op.f("fk_refresh_token_user_id")),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_refresh_token")),
    )
    op.create_index(op.f("ix_refresh_token_expires_at"), "refresh_token", ["expires_at"], unique=False)
    op.create_index(op.f("ix_refresh_token_family_id"), "refresh_token", ["family_id"], unique=False)
    op.create_index(op.f("ix_refresh_token_user_id"), "refresh_token", ["user_id"], unique=False)
    op.create_table(
        "user_patient",
        sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("patient_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("relation", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["patient_id"], ["patient.id"], name=op.f("fk_user_patient_patient_id")),
        sa.ForeignKeyConstraint(["user_id"], ["app_user.id"], name=op.f("fk_user_patient_user_id")),
        sa.PrimaryKeyConstraint("user_id", "patient_id", name=op.f("pk_user_patient")),
        comment="For whom a user may book.",
    )
    op.create_index(op.f("ix_user_patient_patient_id"), "user_patient", ["patient_id"], unique=False)
    op.create_table(
        "verification_code",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False, comment="email, phone or password"),
        sa.Column("code_index", sa.LargeBinary(), nullable=False, comment="HMAC of the code with the user and purpose"),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["app_user.id"], name=op.f("fk_verification_code_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_verification_code")),
    )
    op.create_index(op.f("ix_verification_code_code_index"), "verification_code", ["code_index"], unique=False)
    op.create_index(
        op.f("ix_verification_code_user_id_purpose"), "verification_code", ["user_id", "purpose"], unique=False
    )
    op.create_table(
        "schedule_template",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("doctor_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("location_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("valid_from", sa.Date(), nullable=False),
        sa.Column("valid_to", sa.Date(), nullable=True),
        sa.Column("rules", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["doctor_id"], ["doctor.id"], name=op.f("fk_schedule_template_doctor_id")),
        sa.ForeignKeyConstraint(["location_id"], ["location.id"], name=op.f("fk_schedule_template_location_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedule_template")),
    )
    op.create_index(op.f("ix_schedule_template_doctor_id"), "schedule_template", ["doctor_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_schedule_template_doctor_id"), table_name="schedule_template")
    op.drop_table("schedule_template")
    op.drop_index(op.f("ix_verification_code_user_id_purpose"), table_name="verification_code")
    op.drop_index(op.f("ix_verification_code_code_index"), table_name="verification_code")
    op.drop_table("verification_code")
    op.drop_index(op.f("ix_user_patient_patient_id"), table_name="user_patient")
    op.drop_table("user_patient")
    op.drop_index(op.f("ix_refresh_token_user_id"), table_name="refresh_token")
    op.drop_index(op.f("ix_refresh_token_family_id"), table_name="refresh_token")
    op.drop_index(op.f("ix_refresh_token_expires_at"), table_name="refresh_token")
    op.drop_table("refresh_token")
    op.drop_index(op.f("ix_doctor_specialties"), table_name="doctor", postgresql_using="gin")
    op.drop_index(op.f("ix_doctor_search"), table_name="doctor", postgresql_using="gin")
    op.drop_index(op.f("ix_doctor_location_ids"), table_name="doctor", postgresql_using="gin")
    op.drop_table("doctor")
    op.drop_index(op.f("ix_slot_starts_at_id"), table_name="slot")
    op.drop_index(op.f("ix_slot_location_id_starts_at_id"), table_name="slot")
    op.drop_index(op.f("ix_slot_doctor_id_starts_at_id"), table_name="slot")
    op.drop_table("slot")
    op.drop_table("signing_key")
    op.drop_table("service")
    op.drop_table("placement")
    op.drop_index(op.f("ix_patient_search"), table_name="patient", postgresql_using="gin")
    op.drop_table("patient")
    op.drop_index(op.f("ix_outbox_due_at"), table_name="outbox", postgresql_where=sa.text("sent_at IS NULL"))
    op.drop_table("outbox")
    op.drop_index(
        op.f("ix_move_updated_at"),
        table_name="move",
        postgresql_where=sa.text("state IN ('reserved', 'moved', 'aborted')"),
    )
    op.drop_index(
        op.f("ix_move_target_doctor_id"),
        table_name="move",
        postgresql_where=sa.text("state IN ('reserved', 'moved', 'aborted')"),
    )
    op.drop_table("move")
    op.drop_table("location")
    op.drop_index(op.f("ix_hold_user_id"), table_name="hold")
    op.drop_index(op.f("ix_hold_expires_at"), table_name="hold")
    op.drop_index(op.f("ix_hold_doctor_id"), table_name="hold")
    op.drop_table("hold")
    op.drop_table("event")
    op.drop_index(op.f("ix_command_at"), table_name="command")
    op.drop_table("command")
    op.drop_index(op.f("ix_closure_doctor_id_ends_at"), table_name="closure")
    op.drop_table("closure")
    op.drop_table("calendar")
    op.drop_index(op.f("ix_audit_at_id"), table_name="audit")
    op.drop_table("audit")
    op.drop_index(op.f("ix_appointment_patient_id_starts_at_id"), table_name="appointment")
    op.drop_index(op.f("ix_appointment_starts_at_id"), table_name="appointment")
    op.drop_index(op.f("ix_appointment_doctor_id_starts_at_id"), table_name="appointment")
    op.drop_table("appointment")
    op.drop_index(
        "uq_app_user_phone_verified", table_name="app_user", postgresql_where=sa.text("phone_verified_at IS NOT NULL")
    )
    op.drop_index(
        "uq_app_user_email_verified", table_name="app_user", postgresql_where=sa.text("email_verified_at IS NOT NULL")
    )
    op.drop_index(op.f("ix_app_user_registered_at_id"), table_name="app_user")
    op.drop_index(op.f("ix_app_user_email_index"), table_name="app_user")
    op.drop_table("app_user")
