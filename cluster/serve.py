"""The API process: a listening socket first, so that a taken port is told at once, then uvicorn around ``api.app``."""

from __future__ import annotations

import socket

from cluster.settings import OperatorError, Settings, SettingsError, reason_of, variable

APPLICATION = "api.app:create_app"
PROTOCOL = "api.protocol:HttpProtocol"
WEBSOCKET_PROTOCOL = "api.feed.protocol:WebSocketProtocol"
"""Names, not imports: ``api`` is built on this package."""
WEBSOCKET_MESSAGE_BYTES_MAX = 4096
"""Nothing is expected from clients."""
BACKLOG = 4096
ACCEPTED_TOGETHER = 32
"""Connections in one round of the event loop. libuv accepts one for each listening descriptor, and where requests keep
it busy its rounds are long: thousands who come at once would wait for seconds to be heard."""
KEEP_ALIVE_S = 75
"""Longer than anybody is told to stay away, and than proxies keep connections that they do not use (60 s: nginx, load
balancers): whoever is about to close one sends nothing on it at that moment."""
STARTUP_FAILURE = 3


class PortTaken(OperatorError):
    """Nothing can listen there; the message names the address."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; connections wait in it until someone serves them.

    Raises:
        SettingsError: there is no such address.
        PortTaken: someone else has the port, or this user may not.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise SettingsError(f"{variable('host')}: {host}: {reason_of(error)}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise PortTaken(f"cannot serve on {authority(host, port)}: {reason_of(error)}") from None
    return listener


def authority(host: str, port: int) -> str:
    """``host:port`` as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def serve(settings: Settings, listener: socket.socket) -> int:
    """Serve until SIGINT or SIGTERM, then let requests in flight end; returns the exit code."""
    import uvicorn

    config = uvicorn.Config(
        APPLICATION,
        factory=True,
        loop="uvloop",
        http=PROTOCOL,
        ws=WEBSOCKET_PROTOCOL,
        ws_max_size=WEBSOCKET_MESSAGE_BYTES_MAX,
        ws_per_message_deflate=False,  # It costs each connection ten times the memory of all else.
        lifespan="on",
        proxy_headers=False,  # The application knows whom to believe (see api.middleware).
        server_header=False,
        access_log=False,
        log_config=None,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )
    server = uvicorn.Server(config)
    try:
        server.run(sockets=[listener, *(listener.dup() for _ in range(ACCEPTED_TOGETHER - 1))])
    except KeyboardInterrupt:
        return 0
    return 0 if server.started else STARTUP_FAILURE


def serve_descriptor(settings: Settings, descriptor: int | None) -> int:
    """As ``serve``, on a listening socket that was inherited, or on one of our own."""
    if descriptor is None:
        return serve(settings, listen(settings.host, settings.port))
    return serve(settings, socket.socket(fileno=descriptor))
