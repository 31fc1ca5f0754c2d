"""What only shows on a real connection: bytes that httpx would not send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import psycopg

from cluster.settings import Settings
from tests.integration.feeds import served as serve

JSON = b"Content-Type: application/json\r\n"
REGISTER = b"POST /v1/auth/register HTTP/1.1\r\nHost: zapis\r\n" + JSON


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[int]:
    """A new application on a free port, which is given."""
    from api.app import create_app

    async with serve(create_app(settings), lifespan="on") as port:
        yield port


async def status_of(port: int, *parts: bytes) -> tuple[int, bytes]:
    """The status and all of the answer to these bytes; 0 where the connection just ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
            )
            return int(head.split()[1]), head + await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, b""
    finally:
        writer.close()


async def test_what_a_connection_may_bring(settings: Settings) -> None:
    async with served(settings.model_copy(update={"rate_limit": 0, "request_deadline_s": 1.0})) as port:

        async def answers(expected: int, *parts: bytes) -> None:
            status, answer = await status_of(port, *parts)
            assert status == expected, (parts[0][:60], answer[:300])
            assert b"x-request-id" in answer.lower()
            assert b"application/problem+json" in answer

        await answers(413, REGISTER + b"Content-Length: 9999999999\r\n\r\n")
        await answers(413, REGISTER + b"Content-Length: 2000000\r\nExpect: 100-continue\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        await answers(413, REGISTER + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 20)
        await answers(408, REGISTER + b"Content-Length: 10\r\n\r\n", b"{")
        await answers(422, REGISTER + b"Content-Length: 1\r\n\r\n", b"{")
        await answers(422, REGISTER + b"\r\n")
        await answers(431, b"GET /v1/me HTTP/1.1\r\nHost: zapis\r\nX-Long: " + b"x" * 50_000 + b"\r\n\r\n")
        many = b"".join(b"X-%d: y\r\n" % number for number in range(6000))
        await answers(431, b"GET /v1/me HTTP/1.1\r\nHost: zapis\r\n" + many + b"\r\n")
        await answers(414, b"GET /v1/me?" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: zapis\r\n\r\n")
        await answers(422, b"GET /v1/me?q=%00 HTTP/1.1\r\nHost: zapis\r\n\r\n")
        await answers(404, b"GET /v1/%ff%fe HTTP/1.1\r\nHost: zapis\r\n\r\n")
        await answers(404, b"GET /../../etc/passwd HTTP/1.1\r\nHost: zapis\r\n\r\n")
        await answers(404, b"GET //evil.example/%2e%2e HTTP/1.1\r\nHost: zapis\r\n\r\n")
        await answers(401, b"GET /v1/me HTTP/1.1\r\nHost: zapis\r\nAuthorization: Bearer \xff\xfe\r\n\r\n")
        await answers(405, b"DELETE /v1/auth/register HTTP/1.1\r\nHost: zapis\r\n\r\n")
        await answers(400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        await answers(400, REGISTER + b"Content-Length: 99999999999999999999999\r\n\r\n")
        await answers(400, REGISTER + b"Content-Length: -5\r\n\r\n")
        await answers(400, REGISTER + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")


async def test_what_is_too_much_at_once_is_turned_away_at_once(settings: Settings, database_url: str) -> None:
    async with served(settings.model_copy(update={"requests_max": 2, "rate_limit": 0})) as port:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            for _, slow_writer in slow:  # Who does not send the body keeps nobody out.
                slow_writer.write(REGISTER + b"Content-Length: 10\r\n\r\n{")
            assert (await client.get("/v1/locations")).status_code == 200

            async with two_under_way(client, database_url):
                # A page of a browser's has to be able to read the refusal: it takes the longer way.
                for origin in ({}, {"Origin": "https://clinic.example"}):
                    headers = {"X-Request-ID": "my-own-request"} | origin
                    for refused in await asyncio.gather(
                        *(client.get("/v1/doctors", headers=headers) for _ in range(20)),
                        *(
                            client.post("/v1/auth/register", json={"padding": "x" * 5000}, headers=headers)
                            for _ in range(20)
                        ),
                    ):
                        assert refused.status_code == 503
                        problem = refused.json()
                        assert (problem["code"], problem["instance"]) == ("unavailable", refused.request.url.path)
                        assert refused.headers["content-type"] == "application/problem+json"
                        assert refused.headers["retry-after"] == "2"
                        assert refused.headers["x-request-id"] == "my-own-request"
                        assert refused.headers["cache-control"] == "no-store"
                        assert refused.headers["x-frame-options"] == "DENY"
                assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/v1/doctors")).status_code == 200, "what has ended makes room"
            figures = (await client.get("/metrics")).text
            assert 'zapis_http_requests_total{method="GET",route="unknown",status="503"}' in figures
        for _, slow_writer in slow:
            slow_writer.close()


@asynccontextmanager
async def two_under_way(client: httpx.AsyncClient, database_url: str) -> AsyncIterator[None]:
    """Two requests that wait in the database for as long as the block lasts, and are answered then."""
    wrong = {"grant_type": "password", "username": "nobody", "password": "not the right one"}
    async with await psycopg.AsyncConnection.connect(database_url) as connection, asyncio.TaskGroup() as requests:
        await connection.execute("LOCK TABLE app_user IN ACCESS EXCLUSIVE MODE")
        waiting = [requests.create_task(client.post("/v1/auth/token", data=wrong)) for _ in range(2)]
        async with asyncio.timeout(10):
            while True:
                cursor = await connection.execute(
                    "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND relation = 'app_user'::regclass"
                )
                if await cursor.fetchone() == (2,):
                    break
                await asyncio.sleep(0.01)
        yield
        await connection.rollback()
    assert {(await request).status_code for request in waiting} == {401}


async def test_head_is_answered_as_get_without_its_body(settings: Settings) -> None:
    async with served(settings) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for path, status in (("/healthz", 200), ("/v1/locations", 200), ("/v1/me", 401), ("/v1/auth/token", 405)):
            got, headed = await client.get(path), await client.head(path)
            assert got.status_code == headed.status_code == status, path
            assert headed.content == b""
            assert headed.headers["content-length"] == str(len(got.content))
