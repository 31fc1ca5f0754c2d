"""The HTTP and WebSocket interface: what comes in is checked and authenticated here, then handed to who decides."""
