"""uvicorn's HTTP protocol, with its one answer of its own put into our form: to bytes that are no request."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.errors import MEDIA_TYPE, Problem
from api.middleware import HEADERS, POLICY
from api.routing import encoded
from persistence.identifiers import new_id


class HttpProtocol(HttpToolsProtocol):
    """Answers what is not HTTP with a problem, and ends the connection: where a next request would begin is unknown."""

    def send_400_response(self, msg: str) -> None:
        """The problem; ``msg`` is uvicorn's, and says no more than that."""
        body = encoded(Problem("bad_request", "This is not a request by HTTP.").body())
        headers = (
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"cache-control", b"no-store"),
            (b"x-request-id", new_id().encode()),
            (b"content-security-policy", POLICY),
            *HEADERS,
        )
        lines = [b"HTTP/1.1 400 Bad Request", *(name + b": " + value for name, value in headers), b"", body]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()
