"""What the kernel is told about a stream socket, and what it tells."""

from __future__ import annotations

import array
import fcntl
import select
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any

from gevent.monkey import get_original

__all__ = ["has_input", "is_broken", "keep_alive", "queued_output", "reset_on_close", "send_at_once"]

# Patched, it would wait on a hub, and these functions never wait.
_poll: Callable[[], select.poll] = get_original("select", "poll")

_LINGER_FOR_NOTHING = struct.pack("ii", 1, 0)


def send_at_once(sock: Any) -> None:
    """Have what is written sent now, and not kept for what may come.  Unix sockets do so anyway."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def keep_alive(sock: Any) -> None:
    """Have the kernel look, now and then, whether a silent peer is still there."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def reset_on_close(sock: Any) -> None:
    """Have closing *sock* reset its connection, and drop what was not sent."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_FOR_NOTHING)


def queued_output(sock: Any) -> int:
    """Bytes that the kernel has taken for the peer, and the peer has not."""
    queued = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)
    except OSError:  # not every system tells
        return 0
    return queued[0]


def has_input(sock: Any) -> bool:
    """Return whether *sock* has something to receive: input, the end of it, or an error."""
    return _is_ready(sock, select.POLLIN)


def is_broken(sock: Any) -> bool:
    """Return whether the connection of *sock* has ended in both directions, or broken."""
    return _is_ready(sock, 0)


def _is_ready(sock: Any, events: int) -> bool:
    poll = _poll()
    poll.register(sock.fileno(), events)  # errors, and the end of both directions, are always reported
    return bool(poll.poll(0))
