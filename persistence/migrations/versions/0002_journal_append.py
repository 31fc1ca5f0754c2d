"""The journal's transaction, as one function."""

from __future__ import annotations

from alembic import op

from persistence.migrations.functions import JOURNAL_APPEND

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(JOURNAL_APPEND)


def downgrade() -> None:
    op.execute("DROP FUNCTION journal_append")
