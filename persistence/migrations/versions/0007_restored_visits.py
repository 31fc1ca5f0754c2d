"""People hear that a visit takes place after all; what was said is found by when it was.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from persistence.identifiers import new_id

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        op.f("ix_notification_ended_at"),
        "notification",
        ["ended_at"],
        postgresql_where=sa.text("ended_at IS NOT NULL"),
    )
    # Of those before there is nothing to tell any more: the outbox is as the journal says, and has been planned.
    connection = op.get_bind()
    restored = connection.execute(
        sa.text(
            "SELECT CAST(visit ->> 'appointment_id' AS uuid) AS visit_id,"
            " CAST(visit ->> 'version' AS integer) AS version, event.at"
            " FROM event, jsonb_array_elements(event.payload -> 'restored') AS visit"
            " WHERE event.kind IN ('ClosureRemoved', 'SlotUnblocked')"
        )
    )
    for row in restored.all():
        connection.execute(
            sa.text(
                "INSERT INTO outbox (id, kind, appointment_id, version, due_at, planned_at)"
                " VALUES (:id, 'restored', :visit_id, :version, :at, now())"
            ),
            {"id": new_id()} | dict(row._mapping),
        )


def downgrade() -> None:
    op.execute("DELETE FROM outbox WHERE kind = 'restored'")
    op.drop_index(op.f("ix_notification_ended_at"), "notification")
