"""The opt-in TCP door: loopback only, for SDKs that cannot speak to a unix socket.

Nothing here checks who sends, so no other address is accepted: every user of this host may post.
"""

from __future__ import annotations

import ipaddress
import socket

from tracecore_train.errors import ConfigError, TracecoreError

BACKLOG = 128


def parse_listen(text: str) -> tuple[str, int]:
    """Read ``127.0.0.1:4318``, ``[::1]:4318`` or ``localhost:4318``; raise :class:`ConfigError`."""
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535
    if not separator or address is None or not is_port:
        raise ConfigError(f"{text[:100]!r} is not an address to listen on; give 127.0.0.1:4318")
    if not address.is_loopback:
        raise ConfigError(
            f"{text[:100]!r} is not a loopback address; senders are not authenticated, so only "
            "this host may reach the intake: give 127.0.0.1:4318 or [::1]:4318"
        )
    return host, int(port)


def open_listener(host: str, port: int) -> socket.socket:
    """Listen on an address of :func:`parse_listen`; raise :class:`TracecoreError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise TracecoreError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener
