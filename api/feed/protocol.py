"""uvicorn's WebSocket protocol, which ends connections as feeds have to end."""

from __future__ import annotations

from random import uniform
from typing import Final, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from api.protocol import ABORT

COME_BACK_WITHIN_S: Final = 10.0


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Ends connections so that nobody who does not read keeps one, and not all come back in the same instant."""

    def handle_connect(self, event: Request) -> None:
        """Begin; the application may end the connection at once, whatever there is to be sent."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            cast(dict[str, object], self.scope)[ABORT] = self.transport.abort

    def keepalive_timeout(self) -> None:
        """The client does not answer: there is nobody to say goodbye to."""
        self.transport.abort()

    def shutdown(self) -> None:
        """Close with 1012 and a hint of when to come back."""
        if self.handshake_complete and not self.close_sent:
            self.stop_keepalive()
            reason = f"restart: come back in {uniform(0, COME_BACK_WITHIN_S):.1f} s"
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1012, "reason": reason})
            self.conn.send_close(1012, reason)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.transport.close()
            return
        super().shutdown()
