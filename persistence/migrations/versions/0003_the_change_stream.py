"""What each event changed beside the event, and which calendars changed since one last asked."""

from __future__ import annotations

from alembic import op

from persistence.migrations.functions import JOURNAL_APPEND

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE event ADD COLUMN effect jsonb")
    op.execute("ALTER TABLE calendar ADD COLUMN changed_in xid8")
    op.execute("CREATE INDEX ix_calendar_changed_in ON calendar (changed_in)")
    op.execute(JOURNAL_APPEND)


def downgrade() -> None:
    """There is no way back: the function has one current text, and it writes these columns."""
    raise NotImplementedError("journal_append writes what this migration added")
