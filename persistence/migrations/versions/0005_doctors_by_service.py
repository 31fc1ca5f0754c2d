"""Doctors are found by what they offer, too.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_doctor_service_ids", "doctor", ["service_ids"], postgresql_using="gin")


def downgrade() -> None:
    op.drop_index("ix_doctor_service_ids", "doctor")
