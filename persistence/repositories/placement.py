"""How calendars are placed on calendar actors: one row, whose generation only rises."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from actors.client import Placement


class Placements:
    """The placement, on one connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def read(self) -> Placement | None:
        """The placement in force, or none yet."""
        row = (await self._connection.execute(text("SELECT generation, mode, actors FROM placement"))).one_or_none()
        if row is None:
            return None
        return Placement(generation=row.generation, dedicated=row.mode == "dedicated", actors=row.actors)

    async def put(self, *, dedicated: bool, actors: int) -> Placement:
        """The placement asked for, in force from now on; the generation rises only if that is a change."""
        row = (
            await self._connection.execute(
                text(
                    "INSERT INTO placement AS p (generation, mode, actors) VALUES (1, :mode, :actors)"
                    " ON CONFLICT (single) DO UPDATE SET mode = excluded.mode, actors = excluded.actors,"
                    " generation = p.generation"
                    " + ((p.mode, p.actors) IS DISTINCT FROM (excluded.mode, excluded.actors))::integer"
                    " RETURNING generation"
                ),
                {"mode": "dedicated" if dedicated else "shared", "actors": actors},
            )
        ).one()
        return Placement(generation=row.generation, dedicated=dedicated, actors=actors)
