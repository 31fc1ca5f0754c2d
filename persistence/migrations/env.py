"""Runs the migrations on one connection, under an advisory lock so that two starts at once do not collide."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, pool, text

from persistence.tables import metadata

MIGRATION_LOCK = 0x7A61_7069_73  # "zapis"


def run() -> None:
    """Upgrade (or compare) the database named in the configuration's attributes."""
    engine = create_engine(context.config.attributes["database_url"], poolclass=pool.NullPool)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        connection.commit()
        context.configure(connection=connection, target_metadata=metadata)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
