"""Messages to people, planned from the outbox; and what each user wants to hear of.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from persistence.migrations.functions import JOURNAL_APPEND

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(JOURNAL_APPEND)  # Moves are dated by the database's clock.
    op.alter_column("outbox", "sent_at", new_column_name="planned_at")
    op.create_table_comment(
        "outbox",
        "What people have to be told, written with what causes it. Ids only: it is put in words when it is sent.",
    )
    op.create_index("ix_outbox_sealed", "outbox", ["due_at"], postgresql_where=sa.text("sealed IS NOT NULL"))
    op.create_table(
        "notification",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("outbox_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column(
            "ahead",
            sa.Text(),
            nullable=False,
            comment="of a reminder, how long before the visit (ISO 8601); else empty",
        ),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("appointment_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True, comment="of the appointment that it is about"),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "outcome", sa.Text(), nullable=True, comment="sent, void, late, unwanted, unreachable, capped or dead"
        ),
        sa.Column("failure", sa.Text(), nullable=True, comment="what the last attempt failed with: a code, no address"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notification")),
        sa.UniqueConstraint(
            "outbox_id",
            "kind",
            "ahead",
            "channel",
            "user_id",
            name=op.f("uq_notification_outbox_id_kind_ahead_channel_user_id"),
        ),
        comment="Messages: one for each user, channel and moment. next_at: due, or when its lease or its pause ends.",
    )
    open_ones = sa.text("ended_at IS NULL")
    op.create_index(
        op.f("ix_notification_channel_next_at"), "notification", ["channel", "next_at"], postgresql_where=open_ones
    )
    op.create_index(
        op.f("ix_notification_appointment_id"), "notification", ["appointment_id"], postgresql_where=open_ones
    )
    op.create_index(op.f("ix_notification_user_id_id"), "notification", ["user_id", "id"])
    op.create_index("ix_notification_dead", "notification", ["id"], postgresql_where=sa.text("outcome = 'dead'"))
    op.create_table(
        "notification_preference",
        sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("chosen", postgresql.JSONB(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["app_user.id"], name=op.f("fk_notification_preference_user_id")),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_notification_preference")),
        comment="What users want to hear of; whoever has no row has not chosen.",
    )
    op.create_table(
        "notification_template",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("short", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notification_template")),
        sa.UniqueConstraint("kind", "language", "version", name=op.f("uq_notification_template_kind_language_version")),
        comment="Texts that administrators have written; the last version is said, the others are kept.",
    )
    op.create_table(
        "push_subscription",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("endpoint_index", sa.LargeBinary(), nullable=False),
        sa.Column(
            "sealed",
            sa.LargeBinary(),
            nullable=False,
            comment="JSON {endpoint, p256dh, auth}, under the user's data key",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["app_user.id"], name=op.f("fk_push_subscription_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_push_subscription")),
        sa.UniqueConstraint("endpoint_index", name=op.f("uq_push_subscription_endpoint_index")),
        comment="Browsers that can be pushed to.",
    )
    op.create_index(op.f("ix_push_subscription_user_id"), "push_subscription", ["user_id"])
    op.create_table(
        "known_device",
        sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("device_index", sa.LargeBinary(), nullable=False, comment="HMAC of what it says of itself"),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["app_user.id"], name=op.f("fk_known_device_user_id")),
        sa.PrimaryKeyConstraint("user_id", "device_index", name=op.f("pk_known_device")),
        comment="From what a user has signed in: another one is told to them.",
    )


def downgrade() -> None:
    op.drop_table("known_device")
    op.drop_table("push_subscription")
    op.drop_table("notification_template")
    op.drop_table("notification_preference")
    op.drop_table("notification")
    op.drop_index("ix_outbox_sealed", "outbox")
    op.alter_column("outbox", "planned_at", new_column_name="sent_at")
