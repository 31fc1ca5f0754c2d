"""A lease is a column of no index, and where its page has room writes none. What nobody got is found by an index.

Notifiers of the revision before lease by ``next_at`` alone: they have to be ended first (``zapis drain``), or they send
what others have in hand.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

UNSAID = "ix_notification_unsaid"
DEAD = "ix_notification_dead"
TOLD = "Messages: one for each user, channel and moment. next_at: due, or when its pause ends."
TOLD_BEFORE = "Messages: one for each user, channel and moment. next_at: due, or when its lease or its pause ends."


def upgrade() -> None:
    op.add_column("notification", sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True))
    op.execute("ALTER TABLE notification SET (fillfactor = 80)")
    op.create_table_comment("notification", TOLD, existing_comment=TOLD_BEFORE)
    op.drop_index(DEAD, "notification")
    op.create_index(
        UNSAID, "notification", ["outcome", "id"], postgresql_where=sa.text("outcome NOT IN ('sent', 'void')")
    )


def downgrade() -> None:
    op.drop_index(UNSAID, "notification")
    op.create_index(DEAD, "notification", ["id"], postgresql_where=sa.text("outcome = 'dead'"))
    op.create_table_comment("notification", TOLD_BEFORE, existing_comment=TOLD)
    op.execute("ALTER TABLE notification RESET (fillfactor)")
    op.execute("UPDATE notification SET next_at = leased_until WHERE ended_at IS NULL AND leased_until > next_at")
    op.drop_column("notification", "leased_until")
