"""``GET /v1/slots`` answered from memory by the query as it is written, before it is read."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from starlette.types import Receive, Scope, Send

from api.directory.location_directory import LocationDirectory
from api.routing import StrictRoute
from api.searches import Searches, respond
from persistence.search_store import Answer

QUERIES_MAX: Final = 8_192
QUERY_LENGTH_MAX: Final = 512
Stamp = tuple[int, str, int]
MIDNIGHTS_S: Final = 900
"""Wherever it is midnight, a quarter of an hour begins."""


@dataclass(frozen=True, slots=True)
class _Understood:
    """What a query that was read before asks for."""

    stamp: Stamp
    """It may mean other slots when another day has begun somewhere, or the directory has changed."""
    key: str
    doctor_id: str | None


class Queries:
    """Queries as they were written, and what they ask for: to read one takes longer than to answer it from memory."""

    def __init__(self, searches: Searches, directory: LocationDirectory) -> None:
        self._searches = searches
        self._directory = directory
        self._understood: OrderedDict[bytes, _Understood] = OrderedDict()

    async def answer(self, query: bytes) -> Answer | None:
        """The answer to a query, if it was read before and what it asks for is known."""
        understood = self._understood.get(query)
        if understood is None or understood.stamp != await self._stamp():
            return None
        return self._searches.known(understood.key, understood.doctor_id)

    def learn(self, query: bytes, key: str, doctor_id: str | None, stamp: Stamp) -> None:
        """Remember what a query asks for, by that stamp."""
        if len(query) <= QUERY_LENGTH_MAX:
            self._understood[query] = _Understood(stamp, key, doctor_id)
            if len(self._understood) > QUERIES_MAX:
                self._understood.popitem(last=False)

    async def _stamp(self) -> Stamp:
        locations = await self._directory.locations()
        return stamp_of(time.time(), locations.value.digest, self._directory.generation)


def stamp_of(now_s: float, digest: str, generation: int) -> Stamp:
    """What a query's meaning depends on besides itself: where it is which day, and the directory."""
    return int(now_s) // MIDNIGHTS_S, digest, generation


class SlotsRoute(StrictRoute):
    """Looks a query up as it is written before it reads it."""

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        queries: Queries = scope["app"].state.slot_queries
        answer = await queries.answer(scope["query_string"])
        if answer is None:
            await super()._serve(scope, receive, send)
        else:
            await respond(Request(scope), answer)(scope, receive, send)
